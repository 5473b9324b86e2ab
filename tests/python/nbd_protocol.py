"""Odd and wrong uses of an export, through libnbd.

Run by nbdsh; URI is the export, IMAGE a file with its content.
"""

import errno
import os
import random

import nbd

uri = os.environ["URI"]
with open(os.environ["IMAGE"], "rb") as image:
    content = image.read()
size = len(content)
MIB = 1 << 20


def connect(prepare=lambda handle: None):
    handle = nbd.NBD()
    # Requests that the library knows to be wrong must reach the server.
    handle.set_strict_mode(0)
    prepare(handle)
    handle.connect_uri(uri)
    return handle


def fails(codes, act, *arguments, **options):
    try:
        act(*arguments, **options)
    except nbd.Error as error:
        assert error.errnum in codes, (act, arguments, error)
    else:
        raise AssertionError(f"{act} {arguments} succeeded")


def all_zero(start, end):
    return not any(content[start:end])


# The server's description of the export.
h = connect(lambda handle: handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION))
assert h.get_protocol() == "newstyle-fixed"
assert h.get_structured_replies_negotiated()
assert h.get_size() == size
assert h.is_read_only() and h.can_multi_conn() and h.can_df()
assert not h.can_trim() and not h.can_zero() and not h.can_fua()
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
longest = h.get_block_size(nbd.SIZE_MAXIMUM)
assert longest >= MIB

# Reads at any place, of any length.
pick = random.Random(172)
for _ in range(200):
    offset = pick.randrange(size)
    length = min(pick.choice((1, 7, 511, 4096, 4097, 70000, 3 * MIB)), size - offset)
    assert bytes(h.pread(length, offset)) == content[offset : offset + length], (length, offset)
assert bytes(h.pread(longest, 0)) == content[:longest]
assert bytes(h.pread(1, size - 1)) == content[-1:]

# Replies in pieces: together they cover the range, each part once; holes are holes.
for flags in (0, nbd.CMD_FLAG_DF):
    for offset, length in ((0, 8 * MIB), (MIB + 1, 5 * MIB + 3), (size - 9999, 9999)):
        covered = []

        def piece(data, at, status, error):
            assert bytes(data) == content[at : at + len(data)]
            if status == nbd.READ_HOLE:
                assert all_zero(at, at + len(data))
            covered.append((at, len(data)))

        if flags:
            # A reply that may not be split can be too long for that, and then has that error.
            try:
                h.pread_structured(length, offset, piece, flags)
            except nbd.Error as error:
                assert error.errnum == errno.EOVERFLOW and length > 64 << 10, error
                continue
            assert len(covered) == 1, covered
        else:
            h.pread_structured(length, offset, piece)
        covered.sort()
        position = offset
        for at, len_piece in covered:
            assert at == position, covered
            position += len_piece
        assert position == offset + length

# Block status: extents that follow each other; reported holes are zero, and reported data is not
# all zero.
def status(length, offset, flags=0):
    extents = []

    def take(context, at, entries, error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION and at == offset
        extents.extend(zip(entries[::2], entries[1::2]))

    h.block_status(length, offset, take, flags)
    assert extents and all(length > 0 for length, _ in extents), extents
    return extents


position = 0
while position < size:
    for length, state in status(size - position, position):
        end = min(position + length, size)
        if state:
            assert state == nbd.STATE_HOLE | nbd.STATE_ZERO and all_zero(position, end), (position, length, state)
        else:
            assert not all_zero(position, end), (position, length)
        position = end
assert len(status(size, 0, nbd.CMD_FLAG_REQ_ONE)) == 1
for offset in (1, 4095, 5 * MIB + 123):
    (length, _), *_ = status(1000, offset)
    assert length >= 1

# Many requests in flight, and answers in any order.
buffers = []
for number in range(500):
    offset = pick.randrange(size - 40000)
    buffer = nbd.Buffer(pick.choice((512, 4096, 40000)))
    buffers.append((h.aio_pread(buffer, offset), buffer, offset))
while buffers:
    h.poll(-1)
    waiting = []
    for cookie, buffer, offset in buffers:
        if h.aio_command_completed(cookie):
            assert bytes(buffer.to_bytearray()) == content[offset : offset + buffer.size()]
        else:
            waiting.append((cookie, buffer, offset))
    buffers = waiting

# Wrong requests fail, each by itself; the connection continues.
def goes_on():
    assert bytes(h.pread(4096, 4096)) == content[4096:8192]


for length, offset in ((1, size), (2, size - 1), (1, 1 << 62), (4096, (1 << 63) - 4096)):
    fails({errno.EINVAL}, h.pread, length, offset)
    fails({errno.EINVAL}, h.block_status, length, offset, lambda *_: 0)
    goes_on()
fails({errno.EINVAL, errno.EOVERFLOW, errno.ENOMEM, errno.ERANGE}, h.pread, longest + 1, 0)
goes_on()
fails({errno.EPERM}, h.pwrite, b"x" * 4096, 0)
fails({errno.EPERM}, h.pwrite, b"x" * (2 * MIB), MIB)
goes_on()
for act in (h.trim, h.zero):
    fails({errno.EPERM, errno.EINVAL}, act, 4096, 0)
    goes_on()
fails({errno.EINVAL}, h.pread, 512, 0, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_REQ_ONE)
goes_on()
# A request of zero length is allowed; its answer is left to the server.
for act in (lambda: h.pread(0, 0), lambda: h.block_status(0, 0, lambda *_: 0), h.flush):
    try:
        act()
    except nbd.Error as error:
        assert error.errnum == errno.EINVAL, error
    goes_on()
if h.can_cache():
    h.cache(8 * MIB, 0)
    goes_on()
h.shutdown()

# Older clients: no structured replies, no metadata contexts, not even fixed newstyle.
for prepare in (
    lambda handle: handle.set_request_structured_replies(False),
    lambda handle: handle.set_handshake_flags(0),
    lambda handle: handle.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE),
):
    h = connect(prepare)
    assert h.get_size() == size
    for offset, length in ((0, 1), (4095, 2), (MIB - 1, 3 * MIB)):
        assert bytes(h.pread(length, offset)) == content[offset : offset + length]
    fails({errno.EINVAL, errno.ENOTSUP}, h.block_status, 4096, 0, lambda *_: 0)
    fails({errno.EINVAL}, h.pread, 1, size)
    assert bytes(h.pread(4096, 0)) == content[:4096]
    h.shutdown()

# Queries before a choice.
h = connect(lambda handle: handle.set_opt_mode(True))
export = h.get_export_name()
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == [export], names
contexts = []
h.opt_list_meta_context(contexts.append)
assert contexts == [nbd.CONTEXT_BASE_ALLOCATION], contexts
h.opt_info()
assert h.get_size() == size
for unknown in ("", "snapshot/absent", "absent", "snapshot/", "x" * 4000, "größe"):
    h.set_export_name(unknown)
    fails({errno.ENOENT}, h.opt_info)
h.set_export_name("snapshot/absent")
fails({errno.ENOENT}, h.opt_go)
h.set_export_name(export)
h.opt_go()
assert bytes(h.pread(4096, 0)) == content[:4096]
h.shutdown()

# A disconnect without a choice.
h = connect(lambda handle: handle.set_opt_mode(True))
h.opt_abort()

print("all is as it should be")
