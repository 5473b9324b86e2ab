"""Extended headers, through a libnbd that knows them.

URI is a writable export of 6 GiB with few changes since BEFORE.
"""

import os

import nbd

uri = os.environ["URI"]
before = "qemu:dirty-bitmap:" + os.environ["BEFORE"]
GIB = 1 << 30


def connect(extended=True):
    handle = nbd.NBD()
    handle.set_request_extended_headers(extended)
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.add_meta_context(before)
    handle.connect_uri(uri)
    assert handle.get_extended_headers_negotiated() == extended
    return handle


h = connect()
size = h.get_size()
assert size == 6 * GIB
assert h.can_block_status_payload() and h.can_fast_zero()


def status(handle, length, offset, ask=None):
    found = {}

    def take(context, at, entries, error):
        assert at == offset
        found[context] = list(entries)

    if ask is None:
        handle.block_status_64(length, offset, take)
    else:
        handle.block_status_filter(length, offset, ask, take)
    return found


def total(entries):
    return sum(length for length, _ in entries)


# All contexts in one request, and each by itself.
whole = status(h, size, 0)
assert set(whole) == {nbd.CONTEXT_BASE_ALLOCATION, before}
for context, entries in whole.items():
    assert total(entries) == size, (context, entries)
    assert status(h, size, 0, [context]) == {context: entries}
# Narrower replies say the same.
small = connect(extended=False)
for context, entries in whole.items():
    offset, told = 0, []
    while offset < size:
        part = status(small, min(size - offset, 4 * GIB - 4096), offset)[context]
        told += part
        offset += total(part)
    merged = []
    for length, flags in told:
        if merged and merged[-1][1] == flags:
            merged[-1] = (merged[-1][0] + length, flags)
        else:
            merged.append((length, flags))
    assert merged == [tuple(entry) for entry in entries], (context, merged, entries)

# More than 4 GiB zeroed, and discarded, in one request.
for offset in (0, 3 * GIB, 5 * GIB + 8192):
    h.pwrite(b"\x5a" * 12288, offset)
h.zero(5 * GIB, 4096, nbd.CMD_FLAG_FAST_ZERO)
assert bytes(h.pread(8192, 0)) == b"\x5a" * 4096 + bytes(4096)
assert not any(h.pread(12288, 3 * GIB))
assert bytes(h.pread(12288, 5 * GIB + 8192)) == b"\x5a" * 12288
h.trim(size - 4096, 4096)
assert not any(h.pread(12288, 5 * GIB + 8192))
(first, *rest) = status(h, size, 0, [nbd.CONTEXT_BASE_ALLOCATION])[nbd.CONTEXT_BASE_ALLOCATION]
assert first == (4096, 0) and total(rest) == size - 4096 and all(flags == 3 for _, flags in rest), (first, rest)
h.flush()

h.shutdown()
small.shutdown()
print("all is as it should be")
