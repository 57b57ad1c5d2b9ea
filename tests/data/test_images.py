"""Decoding of photographs of every kind, and refusals that name the file."""

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, TiffImagePlugin

from everycause.data import images
from everycause.data.images import SIGNATURE, check_decodable, decoded, held_out, image_files, squared, within
from everycause.errors import UserError

GRAY = np.tile(np.linspace(0, 250, 32).astype(np.uint8), (32, 1))
COLOR = np.stack([GRAY, GRAY.T, 255 - GRAY], axis=2)


def saved(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def difference(path: Path, expected: np.ndarray) -> float:
    found = np.asarray(decoded(path), dtype=float)
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    return float(np.abs(found - expected).max())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(path: Path, kind: bytes, data: bytes) -> Path:
    """A colored PNG file with one more chunk before its pixels."""
    saved(path, COLOR)
    content = path.read_bytes()
    header = len(SIGNATURE) + 25
    path.write_bytes(content[:header] + chunk(kind, data) + content[header:])
    return path


def test_a_photo_becomes_its_center_square_in_rgb(tmp_path: Path) -> None:
    gradient = np.tile(np.arange(64, dtype=np.uint8)[None] * 4, (32, 1))
    image = squared(decoded(saved(tmp_path / "wide.png", gradient)), 32)
    assert torch.equal(image, torch.from_numpy(gradient[:, 16:48]).expand(3, 32, 32))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pictures_of_every_mode_become_rgb_of_the_same_picture(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(COLOR)
    match mode:
        case "1":
            expected = np.where(GRAY > 127, 255, 0)
            Image.fromarray(GRAY > 127).save(tmp_path / "a.png")
        case "L" | "LA":
            expected = GRAY
            Image.fromarray(GRAY).convert(mode).save(tmp_path / "a.png")
        case "P" | "PA":
            expected = np.asarray(picture.quantize(64).convert("RGB"))
            picture.quantize(64).convert(mode).save(tmp_path / "a.png" if mode == "P" else tmp_path / "a.tif")
        case _:
            expected = COLOR
            picture.convert(mode).save(tmp_path / ("a.png" if mode == "RGBA" else "a.tif"))
    (path,) = tmp_path.iterdir()
    assert difference(path, expected) <= (3 if mode == "YCbCr" else 0)


def test_an_animation_is_its_first_picture_and_a_jpeg_of_a_printer_has_right_colors(tmp_path: Path) -> None:
    first = Image.fromarray(GRAY)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (32, 32))])
    assert difference(tmp_path / "a.gif", GRAY) == 0
    Image.fromarray(COLOR).convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    assert difference(tmp_path / "a.jpg", COLOR) < 40


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("a.png", GRAY.astype(np.uint16) * 257),
        ("a.tif", GRAY.astype(np.uint16) * 257),
        ("a.tif", GRAY.astype(np.int32) * 257),
        ("a.tif", GRAY.astype(np.int32)),
        ("a.tif", GRAY.astype(np.float32) / 255),
        ("a.tif", GRAY.astype(np.float32)),
        ("a.ppm", GRAY.astype(np.uint16) * 257),
        ("a.jp2", GRAY.astype(np.uint16) * 257),
    ],
    ids=[
        "16-bit PNG",
        "16-bit TIFF",
        "int32 of 16 bits",
        "int32 of 8 bits",
        "float to 1",
        "float to 255",
        "16-bit PGM",
        "16-bit JPEG 2000",
    ],
)
def test_deep_pictures_are_scaled_and_not_black(tmp_path: Path, name: str, pixels: np.ndarray) -> None:
    assert difference(saved(tmp_path / name, pixels), GRAY) == 0


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (GRAY.astype(np.uint16) * 16, "whole numbers from 0 to 4000"),
        (GRAY.astype(np.int32) * 8_000_000, "whole numbers from 0 to 2e.09"),
        (GRAY.astype(np.int32) - 100, "from -100 to 150"),
        (GRAY.astype(np.float32) * 257, "fractions from 0 to 64250"),
        (GRAY.astype(np.float32) / 255 - 0.5, "fractions from -0.5"),
        (np.where(GRAY > 100, np.float32(np.nan), np.float32(0.5)), "nothing says which value is white"),
        (GRAY.astype(np.uint16), "whole numbers from 0 to 250"),
        (GRAY.astype(np.uint16) * 65, "whole numbers from 0 to 16250"),
        ((GRAY > 100).astype(np.int32), "whole numbers from 0 to 1,"),
        (GRAY.astype(np.float32) / 25500, "fractions from 0 to 0.0098"),
        (GRAY.astype(np.float32) / 100, "fractions from 0 to 2.5,"),
    ],
    ids=[
        "12 bits",
        "32 bits",
        "negative",
        "float to 64250",
        "negative float",
        "nan",
        "8 bits in 16",
        "14 bits in 16",
        "int32 of zeros and ones",
        "float to 0.01",
        "float to 2.5",
    ],
)
def test_deep_pictures_of_unknown_white_are_refused_by_name(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    path = saved(tmp_path / "deep.tif", pixels)
    for read in (decoded, check_decodable):
        with pytest.raises(UserError, match=f"deep.tif' holds .*{message}|deep.tif' holds .*white"):
            read(path)


def test_a_twelve_bit_picture_that_says_so_is_scaled(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 4095
    path = saved(tmp_path / "a.tif", GRAY.astype(np.uint16) * 16, tiffinfo=tags)
    assert difference(path, GRAY) <= 2


@pytest.mark.parametrize(
    ("pixels", "tags", "expected"),
    [
        (65535 - GRAY.astype(np.uint16) * 257, {"photometric": "miniswhite"}, GRAY),
        (1 - GRAY.astype(np.float32) / 255, {"photometric": "miniswhite"}, GRAY),
        (GRAY.astype(np.int16) * 128, {}, GRAY),
        (GRAY.astype(np.int16).astype(">i2") * 128, {"byteorder": ">"}, GRAY),
        ((GRAY // 2).astype(np.int8), {}, GRAY),
        (COLOR.astype(np.uint16) * 257, {"photometric": "rgb"}, COLOR),
        (np.stack([GRAY, GRAY * 0 + 255], 2), {"extrasamples": ["assocalpha"], "planarconfig": "contig"}, GRAY),
    ],
    ids=["16 bits, white is 0", "float, white is 0", "int16", "int16, big end first", "int8", "16-bit RGB", "La"],
)
def test_what_a_tiff_file_says_of_its_values_is_heeded(
    tmp_path: Path, pixels: np.ndarray, tags: dict, expected: np.ndarray
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, **({"photometric": "minisblack"} | tags))
    check_decodable(tmp_path / "a.tif")
    assert difference(tmp_path / "a.tif", expected) <= 2


def png(channels: int, color_type: int, values: np.ndarray) -> bytes:
    """A PNG file of 16 bits per channel, which Pillow cannot write in color."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values.reshape(len(values), -1, channels))
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), 16, color_type, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("channels", "color_type"), [(2, 4), (3, 2), (4, 6)])
def test_colors_of_16_bits_are_right_and_12_bits_among_them_are_refused(
    tmp_path: Path, channels: int, color_type: int
) -> None:
    values = np.repeat(GRAY.astype(np.uint16)[..., None], channels, axis=2)
    if channels != 3:
        values[..., -1] = 255  # opaque
    (tmp_path / "a.png").write_bytes(png(channels, color_type, values * 257))
    assert difference(tmp_path / "a.png", GRAY) == 0
    values[..., : channels - (channels != 3)] //= 16
    (tmp_path / "a.png").write_bytes(png(channels, color_type, values * 257))
    for read in (decoded, check_decodable):
        with pytest.raises(UserError, match="a.png' holds 16 bits per channel from 0 to 3855, and nothing says which"):
            read(tmp_path / "a.png")


def test_planes_of_16_bits_which_pillow_mixes_up_are_refused(tmp_path: Path) -> None:
    planes = np.moveaxis(COLOR, 2, 0).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(UserError, match="a.tif' holds 16 bits per channel in planes"):
        decoded(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_photo_upright(tmp_path: Path, orientation: int) -> None:
    """Orientations by the corner where the first row and the first column of the stored picture belong (EXIF 2.3)."""
    turned = {
        1: lambda pixels: pixels,
        2: lambda pixels: pixels[:, ::-1],
        3: lambda pixels: pixels[::-1, ::-1],
        4: lambda pixels: pixels[::-1],
        5: lambda pixels: pixels.transpose(1, 0, 2),
        6: lambda pixels: np.rot90(pixels, -1),
        7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: lambda pixels: np.rot90(pixels),
    }
    wide = COLOR[:20]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", wide, exif=exif)
    assert difference(path, turned[orientation](wide)) == 0


@pytest.mark.parametrize("content", [b"Exif\x00\x00II*\x00\xff\xff\xff\x7f", b"Exif\x00\x00garbage", b"Exif\x00\x00"])
def test_exif_that_cannot_be_read_means_no_rotation(tmp_path: Path, content: bytes) -> None:
    saved(tmp_path / "a.jpg", COLOR, quality=98, exif=content)
    assert difference(tmp_path / "a.jpg", COLOR) < 40


def test_a_broken_rational_beside_an_orientation_does_not_stop_the_rotation(tmp_path: Path) -> None:
    """Pillow's own exif_transpose ends in a struct.error here, since it writes the other tags again."""
    entries = struct.pack("<HHHII", 2, 0x0112, 3, 1, 3) + struct.pack("<HHII", 0x011A, 5, 1, 0xFFFFFF)
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + entries + b"\x00" * 4
    saved(tmp_path / "a.jpg", COLOR, quality=98, exif=exif)
    assert difference(tmp_path / "a.jpg", COLOR[::-1, ::-1]) < 40


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"zTXt", b"Comment\x00\x00" + zlib.compress(b"a" * 80_000_000)),
        (b"iTXt", b"Comment\x00\x01\x00\x00\x00" + zlib.compress(b"a" * 80_000_000)),
        (b"iCCP", b"profile\x00\x00" + zlib.compress(b"a" * 80_000_000)),
        (b"iCCP", b"profile\x00\x00no zlib stream"),
        (b"tEXt", b"Raw profile type exif\x00\nexif\n 8\nthis is no hex\n"),
        (b"eXIf", b"II*\x00\xff\xff\xff\x7f"),
        (b"pHYs", b"\x00"),
        (b"iCCP", b""),
        (b"tRNS", b""),
        (b"fdAT", b"\xff"),
    ],
    ids=[
        "long text",
        "long international text",
        "long profile",
        "no profile",
        "no hex",
        "broken EXIF",
        "short size",
        "empty profile",
        "empty transparency",
        "stray animation",
    ],
)
def test_what_stands_beside_the_picture_of_a_png_file_does_not_stop_it(
    tmp_path: Path, kind: bytes, data: bytes
) -> None:
    path = with_chunk(tmp_path / "a.png", kind, data)
    check_decodable(path)
    assert difference(path, COLOR) == 0


@pytest.mark.parametrize("kind", [b"tEXt", b"gAMA", b"iCCP", b"eXIf", b"acTL"])
@pytest.mark.parametrize("place", [len(SIGNATURE) + 25, -12], ids=["before", "after"])
def test_a_damaged_chunk_beside_the_picture_does_not_stop_it(tmp_path: Path, kind: bytes, place: int) -> None:
    path = saved(tmp_path / "a.png", COLOR)
    content, damaged = path.read_bytes(), chunk(kind, b"a\0" + b"b" * 20)[:-1] + b"\0"
    path.write_bytes(content[:place] + damaged + content[place:])
    check_decodable(path)
    assert difference(path, COLOR) == 0


def test_texts_after_the_picture_do_not_stop_it_either(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", COLOR)
    text = chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(b"a" * 80_000_000))
    path.write_bytes(path.read_bytes()[:-12] + text + chunk(b"IEND", b""))
    check_decodable(path)
    assert difference(path, COLOR) == 0


def huge_png() -> bytes:
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an image"),
        (b"not an image", "is not an image"),
        (SIGNATURE, "is truncated or damaged|is not an image"),
        (huge_png(), "has more than 179 megapixels"),
    ],
    ids=["empty", "text", "header alone", "400 megapixels"],
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    for read in (decoded, check_decodable):
        with pytest.raises(UserError, match=rf"broken.png' ({message})"):
            read(tmp_path / "broken.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_a_cut_off_file_of_any_format_is_named_by_reading_and_by_the_check(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = saved(tmp_path / f"half.{suffix}", noise)
    check_decodable(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (decoded, check_decodable):
        with pytest.raises(UserError, match=f"half.{suffix}' is (truncated|not an image)"):
            read(path)


def test_the_check_refuses_what_reading_refuses(tmp_path: Path) -> None:
    """The end mark of a JPEG file may be that of its thumbnail; a PNG file with right checksums may hold no picture."""
    saved(tmp_path / "small.jpg", COLOR[:16, :16])
    saved(tmp_path / "a.jpg", COLOR, exif=b"Exif\0\0" + (tmp_path / "small.jpg").read_bytes())
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(SIGNATURE + header + chunk(b"IDAT", b"no picture") + chunk(b"IEND", b""))
    for name in ("a.jpg", "a.png"):
        for read in (decoded, check_decodable):
            with pytest.raises(UserError, match=f"{name}' is truncated or damaged"):
                read(tmp_path / name)


def test_damaged_bytes_never_end_in_another_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for suffix in ("png", "jpg", "gif", "tif", "webp", "bmp"):
        exif = Image.Exif()
        exif[0x0112] = 6
        whole = saved(tmp_path / f"whole.{suffix}", COLOR, **({} if suffix in ("gif", "bmp") else {"exif": exif}))
        content = np.frombuffer(whole.read_bytes(), dtype=np.uint8)
        for _ in range(60):
            broken = content.copy()
            places = generator.integers(0, len(broken), 6)
            broken[places] = generator.integers(0, 256, len(places))
            path = tmp_path / f"broken.{suffix}"
            path.write_bytes(broken.tobytes())
            refused = [refusal(read, path) for read in (decoded, check_decodable)]
            assert all(path.name in message and "\n" not in message for message in refused if message)
            assert bool(refused[0]) == bool(refused[1]), refused


def refusal(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except UserError as error:
        return str(error)
    return ""


def test_missing_and_unreadable_files_are_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="gone.png' is missing"):
        decoded(tmp_path / "gone.png")
    with pytest.raises(UserError, match="is a folder: an image file is needed"):
        decoded(tmp_path)

    def failing(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    saved(tmp_path / "a.png", COLOR)
    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(UserError, match=r"a.png' could not be read \(Input/output error\): check the drive"):
        decoded(tmp_path / "a.png")


def test_hidden_files_and_folders_are_not_read_and_links_are_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "class", tmp_path / "outside"
    for place in (folder / ".thumbnails", folder / "more", outside):
        place.mkdir(parents=True)
        saved(place / "a.png", COLOR)
    (folder / ".DS_Store").write_text("")
    (folder / "linked").symlink_to(outside)
    assert image_files(folder) == [folder / "linked" / "a.png", folder / "more" / "a.png"]


def test_broken_links_and_loops_are_named(tmp_path: Path) -> None:
    (tmp_path / "class" / "more").mkdir(parents=True)
    link = tmp_path / "class" / "more" / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="symbolic link '.*more/link' to '.*nowhere' is broken"):
        image_files(tmp_path / "class")
    for target in ("link", "..", "../.."):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(UserError, match="'.*more/link.*(leads back to a folder that holds it|is broken)"):
            image_files(tmp_path / "class")


def test_what_can_never_be_read_to_its_end_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match="pipe.jpg' is neither a file nor a folder"):
        image_files(tmp_path)
    with pytest.raises(UserError, match="pipe.jpg' is no file"):
        decoded(tmp_path / "pipe.jpg")
    (tmp_path / "pipe.jpg").unlink()
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="zero.jpg' is neither a file nor a folder"):
        image_files(tmp_path)


def test_a_folder_that_is_called_like_an_image_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    assert image_files(tmp_path) == []
    saved(tmp_path / "x.jpg" / "a.png", COLOR)
    assert image_files(tmp_path) == [tmp_path / "x.jpg" / "a.png"]


def test_a_name_with_a_line_break_is_named_and_odd_spaces_are_not_minded(tmp_path: Path) -> None:
    (tmp_path / "a\u202f\u00a0b.png").write_bytes(b"")
    assert len(image_files(tmp_path)) == 1
    (tmp_path / "a\nb.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"the name b'a\\nb.png' in '.*' holds control characters: rename it"):
        image_files(tmp_path)


def test_a_file_name_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"caf\\xe9.png' in '.*' is no UTF-8: rename it") as caught:
        image_files(tmp_path)
    str(caught.value).encode()


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "link/secret"])
def test_paths_that_leave_the_data_folder_are_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="row 3: '.*' lies outside .*: paths may not leave the data folder"):
        within(tmp_path / "root", place, "row 3")
    assert within(tmp_path / "root", "a/b.png", "row 3") == tmp_path / "root" / "a" / "b.png"
    (tmp_path / "root" / "loop").symlink_to("loop")
    for odd in ("loop", "a\0b"):
        with pytest.raises(UserError, match="row 3: '.*' is no path that can be followed|row 3: '.*' lies outside"):
            within(tmp_path / "root", odd, "row 3")


@pytest.mark.parametrize("tall", [False, True])
def test_a_thin_strip_makes_no_huge_picture_on_the_way_to_a_square(monkeypatch: pytest.MonkeyPatch, tall: bool) -> None:
    strip = np.zeros((8, 20_000, 3), dtype=np.uint8)
    strip[:, 9_996:10_004] = 200
    resized, resize = [], images.functional.resize
    monkeypatch.setattr(images.functional, "resize", lambda *a, **b: resized.append(resize(*a, **b)) or resized[-1])
    square = squared(Image.fromarray(strip.transpose(1, 0, 2) if tall else strip), 64)
    assert square[:, 16:-16, 16:-16].float().mean() == 200 and square.shape == (3, 64, 64)
    assert max(resized[0].size) <= 64 * 16


def test_the_validation_draw_is_that_of_a_slow_reference() -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(4), [2, 3, 10, 40]))
    generator, expected = np.random.default_rng(7), set()
    for label, count in enumerate([1, 1, 3, 12]):
        expected |= set(generator.permutation(np.flatnonzero(labels == label))[:count].tolist())
    chosen = held_out(labels, 0.3, 7)
    assert set(np.flatnonzero(chosen).tolist()) == expected
    assert np.bincount(labels[held_out(labels, 0.999, 7)]).tolist() == [1, 2, 9, 39]
    assert np.bincount(labels[held_out(labels, 0.001, 7)]).tolist() == [1, 1, 1, 1]


def test_images_are_decoded_without_the_rest_of_the_project() -> None:
    """Explaining one image needs torch, torchvision, Pillow and numpy alone."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('pydantic', 'safetensors', 'yaml', 'filelock', 'jaxtyping')));"
        "from everycause.data.images import decoded; print(decoded.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "decoded", done.stderr
