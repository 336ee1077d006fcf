"""The wire format: a `Message` becomes one frame and back. This text is its specification.

All numbers are little-endian. A frame is a prefix of 56 bytes, a body, and a checksum::

    offset  size  field
    0       4     magic, the ASCII letters SPLT
    4       2     version of this format: 3
    6       1     kind, a number of `splitlab.core.contract.message.Kind`
    7       1     flags: bit 0 training, bit 1 stacked; the other bits are 0
    8       8     step
    16      8     number of what its sender says, by which a link outlives its connection; or 0
    24      8     elapsed_ns, the sender's computing time; fixed width, so that timing never
                  changes a count of bytes
    32      8     checksum of the header
    40      8     B, length of the body
    48      8     checksum of the opening: bytes 0 to 48 and 56 to 64
    56      8     H, length of the header
    64      H     header: JSON in UTF-8
    64 + H  ...   tensors, up to byte 56 + B
    56 + B  8     checksum of the tensors, as they lie

A checksum is XXH3 with 64 bits (`splitlab.core.wire.checksum` says why). Each part is held against
its own before anything in it is used, lengths before they are waited for, so that an error names
what was damaged. The tensors' lies behind them, so that a sender need not have seen all of them
when the first leave. Where tensors never were bytes, which is between GPUs of one process or of
NCCL, it is not looked at; it counts as part of the frame all the same.

The body (from byte 56) is laid out as safetensors lays out a file, so that a captured body opens
with any safetensors reader. The header is an object with one member per tensor, in the order in
which the message holds them, padded with spaces so that the tensors begin at a multiple of 8::

    "ROLE/NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}

ROLE is a value of `splitlab.core.contract.message.Role`; a NAME occurs once, whatever its role. The
shape is row-major, offsets count from byte 64 + H. Tensors lie without gap by descending item size,
those of equal item size in the order of the header: then every tensor is aligned in the one
allocation that receives them all. The receiver computes this layout from dtypes and shapes and
refuses any other, which excludes overlaps, gaps and trailing bytes at once.

What goes besides tensors is the member ``__metadata__``, absent if there is nothing: an object of
strings by name, as safetensors wants it, each of which is a JSON document. One that is an array
holds the notes of the plugin of that name; any other is a word of the engine or the session
(`splitlab.core.contract.message.WORDS`). A plugin that is called like such a word, or ends with a
colon, has its notes under its name with a colon behind it. These documents, and only these,
may use the words NaN, Infinity and -Infinity that `json` writes, because a loss may be any of them;
tuples arrive as lists. No object may repeat a key.

dtypes are safetensors' F64 F32 F16 BF16, F8_E4M3 F8_E5M2 (and their FNUZ forms), I64 I32 I16 I8,
U64 U32 U16 U8. There is no BOOL: it would spend a byte on a bit, and bytes other than 0 and 1 make
undefined booleans; pack the bits. There is no complex type either: send ``torch.view_as_real``.
Shapes may be empty (one number) and may hold zeros (no bytes).

Limits are checked before memory is taken or work is done for what they bound:

    frame_bytes    the largest frame; what a peer can make this one allocate
    header_bytes   the largest header; what a peer can make this one parse
    tensors        tensors in a frame; each costs an object
    dimensions     dimensions of a tensor; torch's own arithmetic on shapes stays far from overflow,
                   also because no shape, its zeros taken as ones, may exceed frame_bytes
    name_length    characters of a name, at least one, all printable: a name fits into an error line

Whatever a peer sends, the outcome is a `Message` or a `ProtocolError` of one line: a `DamagedError`
where a checksum, or what stands before the first of them, tells that it is not what was sent. What
cannot be sent is a `PluginError`: a message is built by the engine and by plugins.
"""
