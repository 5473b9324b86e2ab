"""Updates a copy of one snapshot to another one: reads only the changes.

    nbdsh's Python: pull_backup.py URI SNAPSHOT FILE

FILE has the content of SNAPSHOT, and gets that of the export at URI. Prints the number of bytes
read.
"""

import sys

import nbd

uri, snapshot, path = sys.argv[1:]
context = "qemu:dirty-bitmap:" + snapshot
h = nbd.NBD()
h.add_meta_context(context)
h.connect_uri(uri)
if not h.can_meta_context(context):
    sys.exit(f"{uri} has no context {context}")

size = h.get_size()
read = 0
with open(path, "r+b") as file:
    file.truncate(size)
    offset = 0
    while offset < size:
        extents = []

        def collect(name, start, entries, _error):
            if name == context:
                extents.extend(zip(entries[::2], entries[1::2]))

        h.block_status(min(size - offset, 1 << 30), offset, collect)
        for length, flags in extents:
            length = min(length, size - offset)
            if flags & 1:
                at = offset
                while at < offset + length:
                    part = min(offset + length - at, 4 << 20)
                    file.seek(at)
                    file.write(h.pread(part, at))
                    read += part
                    at += part
            offset += length
print(read)
