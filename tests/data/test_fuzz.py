"""Thousands of damaged NIfTI files: each is refused by name, or read as it is.

Nothing but an InputError comes out of the reader, it prints nothing, and neither its
time nor its memory is decided by what a header claims. Where it does return a volume,
that is the one that nibabel finds in the file, and the original's where what was
changed has no part in the values.
"""

import gzip
import io
import logging
import time
import tracemalloc
import warnings
import zlib
from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np
import pytest

from ummcsgm.data.nifti import is_synthetic, read_volume, write_like
from ummcsgm.types import InputError

SECONDS = 2.0  # of the processor, for one file
MEBIBYTE = 2**20
SHAPE = (5, 6, 7)
AFFINE = np.array([[0, -1.5, 0, 9], [-0.9, 0, 0.1, -4], [0, 0.1, 2.0, 3], [0, 0, 0, 1.0]])
HARMLESS = (  # fields that say nothing about values or places
    "descrip aux_file intent_name intent_code intent_p1 intent_p2 intent_p3 db_name "
    "data_type extents session_error regular cal_max cal_min glmax glmin slice_start "
    "slice_end slice_code slice_duration toffset dim_info xyzt_units bitpix unused_str"
).split()
random_bytes = np.random.default_rng(1).bytes
tried = {"files": 0, "refused": 0, "read": 0}


@dataclass(frozen=True)
class Base:
    """A healthy file, from which damaged ones are made."""

    name: str
    kind: type
    dtype: str
    scaling: tuple[float, float] | None = None
    extensions: tuple[tuple[int, bytes], ...] = ()
    index: int | None = None

    @property
    def content(self):
        """The file's bytes before they are packed."""
        return made(self)[0]

    @property
    def volume(self):
        """What is read from the healthy file."""
        return made(self)[1]

    @property
    def header(self):
        """The size of the header, and its fields as they lie in the file."""
        header = self.kind.header_class
        fields = header.template_dtype.newbyteorder(self.dtype[0])
        return header.sizeof_hdr, fields

    def packed(self, content):
        name = self.name.endswith(".gz")
        return gzip.compress(bytes(content), 1, mtime=0) if name else bytes(content)


@cache
def made(base):
    shape = SHAPE if base.index is None else (*SHAPE, 3)
    values = np.random.default_rng(3).integers(0, 200, shape).astype(base.dtype)
    header = base.kind.header_class(endianness=base.dtype[0])
    image = base.kind(values, AFFINE, header, dtype=base.dtype)
    image.header.set_slope_inter(*(base.scaling or (None, None)))
    for code, content in base.extensions:
        extension = nib.nifti1.Nifti1Extension(code, content)
        image.header.extensions.append(extension)
    wanted = values if base.index is None else values[..., base.index]
    slope, inter = base.scaling or (1, 0)
    physical = nib.Nifti1Image(wanted.astype("f8") * slope + inter, AFFINE)
    return image.to_bytes(), oriented(physical)


def oriented(image):
    """The values [Z, Y, X] of `image` as another reader finds them."""
    data = nib.as_closest_canonical(image).get_fdata()
    data = data.reshape(data.shape[:3]) if data.ndim > 3 else data
    return data.transpose(2, 1, 0).astype(np.float32)


V1, V2 = nib.Nifti1Image, nib.Nifti2Image
TWO = ((6, b"a comment"), (44, b"x" * 100))
BASES = [
    Base("plain.nii", V1, "<i2", (0.5, -3.0)),
    Base("big.nii", V1, ">f4", None, TWO),
    Base("packed.nii.gz", V1, "<f4"),
    Base("second.nii", V2, "<i2", (0.25, 7.0), TWO),
    Base("second_big.nii.gz", V2, ">i2", None, ((6, b"other"),)),
    Base("bytes.nii.gz", V1, "<u1", (2.0, 0.0), TWO),
    Base("series.nii", V1, "<i2", (0.5, 1.0), (), 1),
    Base("second_series.nii.gz", V2, "<f4", None, (), 2),
]
# One of each header, byte order and packing; with the others the tests are slow.
DEFAULT = ("plain.nii", "second_big.nii.gz")


def each_of(bases):
    """Runs a test with each of `bases`; those that are not in DEFAULT are slow."""
    slow = pytest.mark.slow
    cases = [pytest.param(b, marks=[] if b.name in DEFAULT else [slow], id=b.name) for b in bases]
    return pytest.mark.parametrize("base", cases)


each_base = each_of(BASES)


@pytest.fixture
def check(tmp_path, capfd):
    """A file with these bytes is refused, or read right and written so again.

    The volume is returned, None where the file was refused. Whether it should be is
    `expected`: True for the original's values, False for a refusal, None for either.
    """
    records = logging.Handler()
    records.emit = lambda record: pytest.fail(f"logged: {record.getMessage()}")

    def check(base, content, expected=None):
        path = tmp_path / base.name
        path.write_bytes(content)
        logging.getLogger("nibabel.global").addHandler(records)
        begin = time.process_time()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert is_synthetic(path) in (True, False)
                volume, geometry = read_volume(path, base.index)
        except InputError as error:
            assert base.name in str(error) and str(path) in str(error)
            assert expected is not True, f"healthy, and refused: {error}"
            volume = None
        finally:
            logging.getLogger("nibabel.global").removeHandler(records)
        assert time.process_time() - begin < SECONDS
        assert not caught, [str(warning.message) for warning in caught]
        tried["files"] += 1
        tried["refused" if volume is None else "read"] += 1
        if volume is not None:
            assert expected is not False, "damaged, and read"
            assert volume.dtype == np.float32 and np.isfinite(volume).all()
            wanted = base.volume if expected else by_nibabel(path, base)
            np.testing.assert_array_equal(volume, wanted)
            assert (
                volume.shape
                == tuple(np.array(geometry.shape[:3])[np.argsort(geometry.orientation[:, 0])])[::-1]
            )
            write_like(tmp_path / "again.nii", volume, geometry)
            again, _ = read_volume(tmp_path / "again.nii")
            np.testing.assert_array_equal(again, volume)
        return volume

    yield check
    out, err = capfd.readouterr()
    assert out == err == ""


def by_nibabel(path, base):
    """The volume in `path`, by nibabel alone; its warnings are not ours."""
    logger = logging.getLogger("nibabel.global")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            image = base.kind.from_filename(path)
            data = image.get_fdata()
            if base.index is not None:
                data = data[:, :, :, base.index].reshape(data.shape[:3])
            return oriented(nib.Nifti1Image(data, image.affine))
        finally:
            logger.setLevel(logging.WARNING)


@each_base
def test_a_healthy_file_is_read(check, base):
    assert check(base, base.packed(base.content), True) is not None


def field_values(dtype):
    """The boundary values of a header field of `dtype`, as bytes."""
    if dtype.kind in "SV":
        return [b"\0" * dtype.itemsize, b"\xff" * dtype.itemsize]
    if dtype.kind == "f":
        values = [0, -1, 1e30, -1e-30, np.nan, np.inf, -np.inf, np.finfo(dtype).max]
    else:
        values = [0, -1, 1, 3, 7, 8, 1000, np.iinfo(dtype).min, np.iinfo(dtype).max]
        values = [value for value in values if np.iinfo(dtype).min <= value]
        values = [value for value in values if value <= np.iinfo(dtype).max]
    return [np.array(value, dtype).tobytes() for value in values]


def number_fields(fields):
    """(field, offset, dtype) of each number in a header."""
    for name, (dtype, offset) in fields.fields.items():
        base, shape = dtype.subdtype or (dtype, ())
        for number in range(int(np.prod(shape))):
            yield name, offset + number * base.itemsize, base


@each_base
def test_every_field_at_its_boundaries(check, base):
    _, fields = base.header
    read = set()
    for name, offset, dtype in number_fields(fields):
        for value in field_values(dtype):
            content = bytearray(base.content)
            content[offset : offset + dtype.itemsize] = value
            harmless = True if name in HARMLESS else None
            if check(base, base.packed(content), harmless) is not None:
                read.add(name)
    assert read >= {"descrip", "pixdim", "cal_max", "scl_inter", "srow_x", "qform_code"}
    assert not read & {"magic"}


@each_base
def test_random_bytes_of_the_header_and_the_extensions(check, base):
    chance = np.random.default_rng(7)
    start = len(base.content) - 3 * int(np.prod(SHAPE)) * 4
    for _ in range(60):
        content = bytearray(base.content)
        for _ in range(chance.integers(1, 6)):
            content[chance.integers(0, max(start, 352))] = chance.integers(0, 256)
        check(base, base.packed(content))


@each_base
def test_random_bytes_of_the_voxels_are_values(check, base):
    chance = np.random.default_rng(8)
    for _ in range(10):
        content = bytearray(base.content)
        content[chance.integers(len(content) - 200, len(content))] ^= 0x41
        check(base, base.packed(content))


@each_base
def test_a_header_of_the_other_byte_order(check, base):
    """The whole header swapped is a file of that order; a part of it is damage."""
    size, fields = base.header
    swapped = np.frombuffer(base.content[:size], fields).byteswap().tobytes()
    order = fields.newbyteorder().fields
    check(base, base.packed(swapped + base.content[size:]))
    for _, (dtype, offset) in order.items():
        content, width = bytearray(base.content), dtype.itemsize
        part = np.frombuffer(content[offset : offset + width], dtype.base)
        content[offset : offset + width] = part.byteswap().tobytes()
        check(base, base.packed(content))


@each_base
def test_a_file_that_is_cut_anywhere_is_refused(check, base):
    whole = base.packed(base.content)
    ends = {*range(0, 30), *range(len(whole) - 20, len(whole)), 343, 347, 348, 351, 352}
    ends |= {*range(30, len(whole), max(len(whole) // 40, 1)), 540, 543, 544}
    for end in sorted(end for end in ends if end < len(whole)):
        check(base, whole[:end], False)
    if whole != base.content:  # what is cut before it was packed has a good check sum
        for end in range(0, len(base.content), 37):
            check(base, base.packed(base.content[:end]), False)


@each_base
def test_what_follows_the_volume_is_ignored_where_it_is_little(check, base):
    for more, expected in ((1, True), (5000, True), (2 * MEBIBYTE, False)):
        content = base.content + random_bytes(16) + b"\0" * more
        check(base, base.packed(content), expected)


PACKED = [base for base in BASES if base.name.endswith(".gz")]
each_packed = each_of(PACKED)


@each_packed
def test_a_flipped_bit_of_a_packed_file_is_seen(check, base):
    whole = base.packed(base.content)
    chance = np.random.default_rng(9)
    free = {4, 5, 6, 7, 8, 9}  # of the gzip header: a time, a level, a system
    for offset in sorted({*range(12), *chance.integers(12, len(whole), 60).tolist()}):
        content = bytearray(whole)
        content[offset] ^= 1 << chance.integers(0, 8)
        check(base, content, True if offset in free else None)
    for offset in range(len(whole) - 8, len(whole)):
        content = bytearray(whole)
        content[offset] ^= 1
        check(base, content, False)


@each_packed
def test_a_packed_file_in_parts_is_read_and_what_trails_it_is_damage(check, base):
    content = base.content
    for cut in (1, 100, 348, 400, len(content) - 1):
        parts = gzip.compress(content[:cut]) + gzip.compress(content[cut:])
        check(base, parts, True)
        check(base, parts[:-4], False)
    whole = base.packed(content)
    check(base, whole + gzip.compress(b""), True)
    check(base, whole + gzip.compress(b"") * 1000, True)
    check(base, whole + b"\0" * 100, True)  # padding, as of tapes
    check(base, whole + b"garbage", False)
    check(base, whole + whole[:40], False)
    check(base, b"\x1f\x8b" + random_bytes(500), False)
    named = io.BytesIO()
    with gzip.GzipFile("a name", "wb", fileobj=named) as file:
        file.write(content)
    check(base, named.getvalue(), True)
    check(base, named.getvalue()[:14], False)


def peak(function):
    """The most memory in bytes that `function` holds at one time."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@cache
def zeros_packed(size):
    """`size` zeros as a gzip member, made without holding them."""
    packer = zlib.compressobj(1, wbits=31)
    parts = [packer.compress(bytes(MEBIBYTE)) for _ in range(size // MEBIBYTE)]
    return b"".join([*parts, packer.flush()])


@each_packed
def test_a_tiny_image_that_unpacks_to_200_mebibytes_does_not(check, base):
    bomb = zeros_packed(200 * MEBIBYTE)
    assert len(bomb) < 2 * MEBIBYTE
    whole = base.packed(base.content) + bomb
    assert peak(lambda: check(base, whole, False)) < 20 * MEBIBYTE
    without = gzip.compress(b"\0" * 400) + bomb
    assert peak(lambda: check(base, without, False)) < 20 * MEBIBYTE
    claims = ({"dim": [3, 10000, 10000, 10000, 1, 1, 1, 1]}, {"vox_offset": 2.0**28})
    for claim in claims:
        whole = gzip.compress(with_fields(base, **claim)) + bomb
        assert peak(lambda c=whole: check(base, c, False)) < 20 * MEBIBYTE


def with_fields(base, **values):
    """The content of `base` with these header fields."""
    size, fields = base.header
    header = np.frombuffer(base.content[:size], fields).copy()
    for name, value in values.items():
        header[name] = value
    return header.tobytes() + base.content[size:]


# Python's gzip holds a buffer: 8 MiB from 3.12 on, whatever the header claims.
HELD = 12 * MEBIBYTE
HUGE = {V1: [(10000, 10000, 10000), (32767,) * 3, (32767, 32767, 1), (1024, 1024, 257)]}
HUGE[V2] = [*HUGE[V1], (10**12, 1, 1), (2**62, 4, 2), (2**63 - 1,) * 3, (10**9, 1, 1)]


@each_base
def test_a_header_that_claims_too_many_voxels_takes_neither_time_nor_memory(check, base):
    for shape in HUGE[base.kind]:
        for count in (3, 4, 7):
            dim = [count, *shape, *[3, 2, 2, 2][: count - 3], *[1] * (7 - count)]
            content = base.packed(with_fields(base, dim=[*dim, 1][:8]))
            assert peak(lambda c=content: check(base, c, False)) < HELD


@each_of([BASES[0], BASES[2]])
def test_a_claim_that_could_be_true_takes_only_what_is_found(check, base):
    """2^28 voxels claimed, a few MiB there: the file is short, and no more was held."""
    found = base.content[:352] + random_bytes(8 * MEBIBYTE)
    content = with_fields(base, dim=[3, 1024, 512, 512, 1, 1, 1, 1])[:352] + found[352:]
    packed = base.packed(content)
    assert peak(lambda: check(base, packed, False)) < 60 * MEBIBYTE


@each_base
def test_data_that_begin_where_they_cannot_are_refused(check, base):
    size, fields = base.header
    huge = [2.0**31, 2.0**40, 1e30] if base.kind is V1 else [2**31, 2**40, 2**63 - 1]
    starts = [0, 1, size, size + 3, -16, 10**6, 2**26, 2**26 + 16, *huge]
    for start in starts:
        content = base.packed(with_fields(base, vox_offset=start))
        assert peak(lambda c=content: check(base, c, False)) < HELD


each_extended = each_of([base for base in BASES if base.extensions])


@each_extended
def test_extensions_of_any_size_and_code_do_no_harm(check, base, tmp_path):
    size, _ = base.header
    order = base.dtype[0] + "i4"
    sizes = [0, -1, -16, 1, 7, 8, 9, 15, 16, 17, 24, 10**4, 2**31 - 1, -(2**31), 32]
    for value in sizes:
        content = bytearray(base.content)
        content[size + 4 : size + 8] = np.array(value, order).tobytes()
        check(base, base.packed(content))
    for code in (*range(0, 50, 2), -1, 2**31 - 1):
        content = bytearray(base.content)
        content[size + 8 : size + 12] = np.array(code, order).tobytes()
        check(base, base.packed(content))
    for mark in (0, 1, 2, 255):
        content = bytearray(base.content)
        content[size] = mark
        check(base, base.packed(content), True)


@each_extended
def test_extensions_come_back_as_they_were(tmp_path, base):
    path, other = tmp_path / base.name, tmp_path / f"other_{base.name}"
    path.write_bytes(base.packed(base.content))
    write_like(other, *read_volume(path))
    expected = [(code, content) for code, content in base.extensions]
    for file in (path, other):
        extensions = nib.load(file).header.extensions
        found = [(e.get_code(), e.get_content().rstrip(b"\0")) for e in extensions]
        assert found == expected


def test_whether_a_file_is_synthetic_is_reported_by_its_first_bytes(tmp_path):
    path, large = tmp_path / "a.nii.gz", tmp_path / "large.nii.gz"
    path.write_bytes(BASES[0].packed(BASES[0].content))
    nib.save(nib.Nifti1Image(np.ones((200, 200, 200), "f4"), AFFINE), large)
    content = gzip.decompress(large.read_bytes())
    content = content[:148] + b"synthetic, ummcsgm".ljust(80, b"\0") + content[228:]
    large.write_bytes(gzip.compress(content, 1))
    assert peak(lambda: is_synthetic(large)) < MEBIBYTE
    assert is_synthetic(large) and not is_synthetic(path)
    broken = large.read_bytes()
    large.write_bytes(broken[: len(broken) // 2])
    assert is_synthetic(large)


@pytest.mark.slow
def test_at_least_2000_files_were_tried_and_both_ends_were_seen():
    if tried["files"] < 500:
        pytest.skip("only some of this file's tests ran in this process")
    assert tried["files"] >= 2000 and min(tried.values()) >= 500
