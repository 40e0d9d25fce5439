"""Tell what a file is by its content, or else by the ending of its name, and what helps where it is foreign."""

import os
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import NamedTuple

from hf_any3d.data.files.text import GRID_START, has_rows
from hf_any3d.registry import FORMATS, TYPES_BY_OPTION

PEEK = 1 << 16
"""Bytes at each end of a file that tell what it is."""

_MESH = "export it as .glb, .obj or .ply"
_CAD = "export it as .stl, .obj or .3mf"
_SCAN = "export it as .e57, .las or .ply"
_SPLATS = "export it as .ply or .spz"
_UNPACK = "unpack it first"
_ARRAYS = "save its arrays as .npz"
_CLOUDS = 'open a data set of clouds with load_point_dataset("hdf5", data_dir=…), or save one cloud as .npz'
_TABLE = "save its rows as .csv"
_RASTER = "convert it to points first"
_SCANS = "expected a file of points, such as .las, .laz or .ply"
_NO_POINTS = "expected a file of points or a mesh"


class Foreign(NamedTuple):
    """A file of another program."""

    what: str
    step: str

    def __str__(self) -> str:
        return f"{self.what}; {self.step}"


# Content of other programs, by how it begins.
_FOREIGN = tuple(
    (re.compile(start, re.IGNORECASE | re.DOTALL), Foreign(what, step))
    for start, what, step in (
        (rb"\x89PNG\r\n", "a PNG image", _NO_POINTS),
        (rb"\xff\xd8\xff[\xc0-\xfe]", "a JPEG image", _NO_POINTS),
        (rb"GIF8[79]a", "a GIF image", _NO_POINTS),
        (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "a TIFF image, a raster without points", _SCANS),
        (rb"BM.{4}\0{4}", "a BMP image", _NO_POINTS),
        (rb"RIFF.{4}WEBP", "a WebP image", _NO_POINTS),
        (rb"8BPS", "a Photoshop image", _NO_POINTS),
        (rb"v/1\x01", "an EXR image", _NO_POINTS),
        (rb".{4}ftyp(heic|heix|mif1|avif)", "a HEIC or AVIF image", _NO_POINTS),
        (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", "a video", _NO_POINTS),
        (rb"ID3[\2-\4]\0|RIFF.{4}WAVE|fLaC|OggS", "a sound", _NO_POINTS),
        (rb"%PDF-", "a PDF document", _NO_POINTS),
        (
            rb"\s*(<!--.{0,2000}?-->\s*)?<(!DOCTYPE html|html|head|body)\b",
            "a web page (HTML), perhaps a failed download",
            "download the file itself",
        ),
        (rb"\s*(<\?xml\b.{0,2000}?)?<COLLADA\b", "a COLLADA model", _MESH),
        (rb"\s*(<\?xml\b.{0,2000}?)?<X3D\b", "an X3D model", _MESH),
        (rb"\s*(<\?xml\b.{0,2000}?)?<VTKFile\b", "a VTK file", "save it as .ply in ParaView"),
        (rb"\s*(<\?xml\b.{0,2000}?)?<kml\b", "a KML document", _NO_POINTS),
        (rb"\s*(<\?xml\b.{0,2000}?)?<svg\b", "an SVG drawing", _NO_POINTS),
        (rb"\x1f\x8b\x08[\0-\x1f]", "compressed by gzip", _UNPACK),
        (rb"BZh[1-9]1AY", "compressed by bzip2", _UNPACK),
        (rb"\xfd7zXZ\0", "compressed by xz", _UNPACK),
        (rb"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
        (rb"\x04\x22\x4d\x18", "compressed by lz4", _UNPACK),
        (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
        (rb"Rar!\x1a", "a RAR archive", _UNPACK),
        (rb".{257}ustar", "a tar archive", _UNPACK),
        (rb"PAR1", "Parquet", "open it with datasets.load_dataset"),
        (rb"ARROW1\0", "Arrow", "open it with datasets.load_dataset"),
        (rb"MATLAB 5\.0 MAT-file", "a MATLAB file", _ARRAYS),
        (rb"#ROSBAG V|\x89MCAP", "a ROS bag", "export its point clouds as .pcd"),
        (rb"\xd4\xc3\xb2\xa1|\xa1\xb2\xc3\xd4|\x0a\x0d\x0d\x0a.{4}(\x4d\x3c\x2b\x1a|\x1a\x2b\x3c\x4d)",
         "a packet capture", "export its frames as .pcd or .las with the software of the sensor"),
        (rb"CCB2", "a CloudCompare file", "save it as .ply or .las"),
        (rb"AC10\d\d", "a DWG drawing", _CAD),
        (rb"(\s*999\s*\n[^\n]*\n){0,20}\s*0\s*\n\s*SECTION\b|AutoCAD Binary DXF", "a DXF drawing", _CAD),
        # Grids share the ending .asc with rows of points.
        (GRID_START, "an ESRI ASCII grid, a raster without points", _RASTER),
        (rb"-----BEGIN PGP", "a key or a signature of PGP", _NO_POINTS),
        (rb"ISO-10303-21;.{0,3000}FILE_SCHEMA\s*\(\s*\(\s*'IFC", "an IFC model of a building", _CAD),
        (rb"ISO-10303-21;", "a STEP model", _CAD),
        (rb".{72}S\s{6}1\r?\n", "an IGES model", _CAD),
        (rb"Kaydara FBX Binary|; FBX \d", "an FBX model", _MESH),
        (rb"BLENDER[-_v\d]", "a Blender file", _MESH),
        (rb"MM.{4}(\x02\0|==)", "a 3D Studio model", _MESH),
        (rb"Ogawa", "an Alembic scene", _MESH),
        (rb"PXR-USDC|#usda ", "a USD scene", _MESH),
        (rb"#VRML V", "a VRML model", _MESH),
        (rb"DRACO", "a Draco file", _MESH),
        (rb"# vtk DataFile", "a VTK file", "save it as .ply in ParaView"),
        (rb"3D Geometry File Format|3D Geometry", "a Rhino model", _MESH),
        (rb"(b3dm|i3dm|cmpt)\x01\0\0\0", "a 3D Tiles tile", "export it as .glb"),
        (rb"\xff\xfe[\t-~]\0[\t-~]\0|\xfe\xff\0[\t-~]\0[\t-~]", "text in UTF-16", "save it as UTF-8"),
        (rb"\x7fELF|MZ.{76}This program|MZ.{64,200}DOS mode", "a program", _NO_POINTS),
        (rb"\x80[\x02-\x05][}\](\x95cX]", "a Python pickle", _ARRAYS),
        (rb'\s*\{.{0,4000}"(hierarchyType|hierarchyStep)"', "an EPT (Entwine) index",
         "write its points as .laz with PDAL"),
        (rb'\s*\{.{0,4000}"(octreeDir|hierarchy"\s*:\s*\{\s*"firstChunkSize)"', "a Potree index",
         "pass the .las or .laz that it was made from"),
        (rb'\s*\{.{0,4000}"geometricError"', "a 3D Tiles tileset index", "pass one of its tiles"),
        (rb'\s*\{.{0,4000}"type"\s*:\s*"(FeatureCollection|Feature)"', "GeoJSON", _NO_POINTS),
    )
)  # fmt: skip
# Containers of many kinds of content, of which an ending says more.
_CONTAINERS = tuple(
    (re.compile(start, re.IGNORECASE | re.DOTALL), Foreign(what, step))
    for start, what, step in (
        (rb"PK(\x03\x04|\x05\x06)", "a zip archive", _UNPACK),
        (rb"\s*<\?xml\b", "XML", _NO_POINTS),
        (rb"\x89HDF\r\n", "HDF5", _CLOUDS),
        (rb"SQLite format 3\0", "an SQLite database", _NO_POINTS),
        (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document", _NO_POINTS),
        (rb'\s*[{\[]\s*["{\[}]', "JSON", _NO_POINTS),
    )
)
# Files within a ZIP -> what it is.
_PACKAGES = (
    (re.compile(rb"(?i)\.usd[acz]?$"), Foreign("a USDZ scene", _MESH)),
    (re.compile(rb"^xl/"), Foreign("a spreadsheet", _TABLE)),
    (re.compile(rb"^(word|ppt)/"), Foreign("an Office document", _NO_POINTS)),
    (re.compile(rb"(?i)^doc\.kml$"), Foreign("a KMZ document", _NO_POINTS)),
    (re.compile(rb"(?i)(^|/)data\.pkl$"), Foreign("a PyTorch checkpoint", _ARRAYS)),
    (re.compile(rb"(?i)^document\.xml$"), Foreign("a FreeCAD document", _CAD)),
    (re.compile(rb"^means_l\.webp$"), Foreign("splats in SOG", _SPLATS)),
)
_ENDINGS: dict[str, Foreign] = {
    ending: Foreign(what, step)
    for endings, what, step in (
        # Meshes and scenes
        ("usdz usd usda usdc", "a USD scene", _MESH),
        ("fbx", "an FBX model", _MESH),
        ("blend", "a Blender file", _MESH),
        ("dae zae", "a COLLADA model", _MESH),
        ("3ds", "a 3D Studio model", _MESH),
        ("max", "a 3ds Max scene", _MESH),
        ("abc", "an Alembic scene", _MESH),
        ("ma mb", "a Maya scene", _MESH),
        ("c4d", "a Cinema 4D scene", _MESH),
        ("skp", "a SketchUp model", _MESH),
        ("lwo lws", "a LightWave model", _MESH),
        ("x3d x3dv x3db", "an X3D model", _MESH),
        ("wrl vrml", "a VRML model", _MESH),
        ("3dm", "a Rhino model", _MESH),
        ("ztl zpr zbr", "a ZBrush model", _MESH),
        ("reality", "a Reality Composer scene", _MESH),
        ("amf", "an AMF model", _CAD),
        ("drc", "a Draco file", _MESH),
        ("ctm", "an OpenCTM mesh", _MESH),
        ("msh mesh vol", "a simulation mesh", _MESH),
        ("vtk vtp vtu vti vts vtr", "a VTK file", "save it as .ply in ParaView"),
        ("b3dm i3dm cmpt", "a 3D Tiles tile", "export it as .glb"),
        ("mtl", "the material file of an OBJ", "pass the .obj"),
        ("mlp", "a MeshLab project", _MESH),
        # Constructions
        ("step stp p21", "a STEP model", _CAD),
        ("iges igs", "an IGES model", _CAD),
        ("sldprt sldasm slddrw", "a SolidWorks model", _CAD),
        ("ipt iam", "an Inventor model", _CAD),
        ("catpart catproduct", "a CATIA model", _CAD),
        ("prt asm x_t x_b xmt_txt sat sab brep", "a CAD model", _CAD),
        ("f3d f3z", "a Fusion model", _CAD),
        ("fcstd", "a FreeCAD document", _CAD),
        ("jt", "a JT model", _CAD),
        ("dwg", "a DWG drawing", _CAD),
        ("dxf", "a DXF drawing", _CAD),
        ("dgn", "a MicroStation drawing", _CAD),
        ("rvt rfa rte", "a Revit model", _CAD),
        ("ifc ifczip ifcxml", "an IFC model of a building", _CAD),
        ("pln pla", "an Archicad model", _CAD),
        ("nwd nwc nwf", "a Navisworks model", _CAD),
        ("3dxml", "a 3DXML model", _CAD),
        # Scanners and photogrammetry
        ("rcp rcs", "an Autodesk ReCap scan", "export it as .e57, .las or .pts from ReCap"),
        ("fls lsproj fws", "a FARO scan", "export it as .e57 or .las from SCENE"),
        ("zfs zfprj", "a Zoller+Fröhlich scan", "export it as .e57 or .las from LaserControl"),
        ("rxp rdbx rsp rpp rdb", "a RIEGL scan", "export it as .las or .e57 from RiSCAN PRO"),
        ("lgs lgsx ptg imp ptz coe", "a Leica scan", "export it as .e57, .las or .ptx from Cyclone"),
        ("tzf tzs rwp rwcx", "a Trimble scan", "export it as .e57 or .las from RealWorks"),
        ("clr cl3 mscx", "a Topcon scan", "export it as .e57 or .las from ScanMaster or Collage"),
        ("pod", "a Bentley Pointools point cloud", _SCAN),
        ("psx psz pcp oc3", "a Metashape project", "export its point cloud as .las or .ply from Metashape"),
        ("p4d bpp", "a Pix4D project", "export its point cloud as .las or .ply from Pix4D"),
        ("zlas", "an Esri point cloud", "convert it to .las with ArcGIS"),
        ("bpf", "a BPF point cloud", "convert it to .las with PDAL"),
        ("sdc sdw 3dd sci oaz qi rds", "a scan in a proprietary format", _SCAN),
        ("lvx lvx2", "a Livox recording", "export it as .las or .pcd from Livox Viewer"),
        ("pcap pcapng", "a packet capture",
         "export its frames as .pcd or .las with the software of the sensor"),
        ("bag db3 mcap rosbag", "a ROS bag", "export its point clouds as .pcd"),
        ("vpc", "a virtual point cloud", "pass the files that it lists"),
        ("copc", "a COPC file with another extension", "end its name with .copc.laz"),
        ("ept", "an EPT (Entwine)", "write its points as .laz with PDAL"),
        ("potree js", "a Potree octree file", "pass the .las or .laz that it was made from"),
        # Splats
        ("sog sogs", "splats in SOG", _SPLATS),
        ("ksplat", "splats of GaussianSplats3D", _SPLATS),
        ("lcc", "splats of XGRIDS", _SPLATS),
        ("splatv rad", "Gaussian splats for another viewer", _SPLATS),
        # Maps
        ("tif tiff geotiff img dem hgt bil flt vrt", "a raster without points", _SCANS),
        ("shp shx dbf gpkg geojson kml kmz gdb gml", "a vector map", _NO_POINTS),
        # Data
        ("h5 hdf5 hdf", "HDF5", _CLOUDS),
        ("mat", "a MATLAB file", _ARRAYS),
        ("pkl pickle joblib", "a Python pickle", _ARRAYS),
        ("pt pth ckpt onnx safetensors", "a file of model weights", _ARRAYS),
        ("zarr nc", "an array store", _ARRAYS),
        ("parquet arrow feather", "an Arrow or Parquet table", "open it with datasets.load_dataset"),
        ("xlsx xls xlsm ods numbers", "a spreadsheet", _TABLE),
        ("json jsonl geo yaml yml toml xml db sqlite", "data without points", _NO_POINTS),
        # Documents, images and programs
        ("png jpg jpeg gif bmp webp heic heif avif exr hdr tga psd svg dng cr2 nef raw ico", "an image", _NO_POINTS),
        ("mp4 mov avi mkv webm insv", "a video", _NO_POINTS),
        ("mp3 wav flac ogg m4a", "a sound", _NO_POINTS),
        ("pdf doc docx ppt pptx odt rtf md html htm", "a document", _NO_POINTS),
        ("exe dll so py ipynb", "a program", _NO_POINTS),
        # Labels, which belong to a cloud
        ("label labels seg", "labels for another file", "pass the point cloud; its labels are read along with it"),
        # Packed
        ("gz tgz", "compressed by gzip", _UNPACK),
        ("bz2", "compressed by bzip2", _UNPACK),
        ("xz", "compressed by xz", _UNPACK),
        ("zst", "compressed by zstd", _UNPACK),
        ("lz4", "compressed by lz4", _UNPACK),
        ("zip", "a zip archive", _UNPACK),
        ("7z", "a 7z archive", _UNPACK),
        ("rar", "a RAR archive", _UNPACK),
        ("tar", "a tar archive", _UNPACK),
    )
    for ending in endings.split()
}  # fmt: skip


# Names of the files in a ZIP, in its headers and in its directory.
_MEMBER = re.compile(rb"PK\x03\x04.{22}(?=(..))..|PK\x01\x02.{24}(?=(..)).{16}", re.DOTALL)


class Look(NamedTuple):
    """Both ends of a file, and its size."""

    start: bytes
    end: bytes
    size: int

    @classmethod
    def at(cls, data: bytes) -> "Look":
        """Look at the bytes of a whole file."""
        return cls(bytes(data[:PEEK]), bytes(data[-PEEK:]), len(data))

    @classmethod
    def into(cls, path: str | os.PathLike) -> "Look":
        """Look at a file of this machine."""
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            start = file.read(PEEK)
            file.seek(max(0, size - PEEK))
            return cls(start, file.read(PEEK), size)

    @property
    def members(self) -> list[bytes]:
        """Names of the files in a ZIP, as far as they are seen."""
        names = []
        for part in (self.start, self.end):
            for match in _MEMBER.finditer(part):
                length = int.from_bytes(match[1] or match[2], "little")
                skipped = 2 if match[1] is not None else 0
                names.append(part[match.end() + skipped : match.end() + skipped + length])
        return names


_SIGNATURES = tuple(
    (re.compile(start, re.IGNORECASE), file_type)
    for start, file_type in (
        (rb"ply[ \t]*[\r\n]", "ply"),
        (rb"\x93NUMPY", "npy"),
        (rb"PK\x03\x04", "npz"),
        (rb"glTF", "glb"),
        (rb"pnts", "pnts"),
        (rb"LASF", "las"),
        (rb"ASTM-E57", "e57"),
        (rb"#\s*\.PCD|(VERSION|FIELDS)\s", "pcd"),
        (rb"\s*(#[^\n]*\n\s*){0,99}(?:ST|[CN4])*OFF(?:\s+BINARY\b|[\s\d])", "off"),
        (rb"\s*solid\s", "stl"),
        (rb"#[^\n]*\n#[^\n]*\bPOINT3D_ID\b", "colmap"),
        # The numbers of columns and rows, and rows of three and of four numbers.
        (
            rb"\s*\d+[ \t\r]*\n[ \t]*\d+[ \t\r]*\n(?:[ \t]*(?:[-+.\deE]+[ \t\r]+){2}[-+.\deE]+[ \t\r]*\n){4}"
            rb"(?:[ \t]*(?:[-+.\deE]+[ \t\r]+){3}[-+.\deE]+[ \t\r]*\n){4}",
            "ptx",
        ),
    )
)


def known_type(look: Look) -> str | None:
    """Return the file type that content has by its signature; None for text and bare numbers without one."""
    for signature, file_type in _SIGNATURES:
        if not signature.match(look.start):
            continue
        if file_type != "npz":
            return file_type
        # Any archive begins as an .npz does.
        names = look.members
        if any(name.endswith(b".npy") for name in names):
            return "npz"
        is_office = any(pattern.search(name) for pattern, _ in _PACKAGES for name in names)
        return "3mf" if b"[content_types].xml" in map(bytes.lower, names) and not is_office else None
    if look.start.startswith((b"NGSP", b"\x1f\x8b")):
        from hf_any3d.data.files.splats import is_spz

        return "spz" if is_spz(look.start) else None
    # Binary STL has an arbitrary header of 80 bytes, then the number of triangles of 50 bytes each.
    if look.size >= 84 and look.size == 84 + 50 * int.from_bytes(look.start[80:84], "little"):
        return "stl"
    return None


_LONGEST_START, _TEXT = 4096, 256


def foreign_content(look: Look, name: str = "") -> Foreign | None:
    """Return what a file of another program is by its content; of a container, by the ending of its name, too."""
    start = look.start[:_LONGEST_START]
    # Numbers may begin with the letters of a text by chance, and have zeros soon.
    is_text = b"\0" not in start[:_TEXT]
    for signature, foreign in _FOREIGN:
        if signature.match(start) and (is_text or not signature.pattern.startswith(rb"\s*")):
            return foreign
    for signature, foreign in _CONTAINERS:
        if signature.match(start) and (is_text or not signature.pattern.startswith(rb"\s*")):
            names = look.members
            for pattern, package in _PACKAGES:
                if any(map(pattern.search, names)):
                    return package
            named = foreign_ending(name)
            # No image or document is such a container.
            return foreign if named is None or named.step == _NO_POINTS else named
    return None


def foreign_ending(name: str) -> Foreign | None:
    """Return what a file of another program is by the ending of its name, None for unknown ones and our own."""
    ending = _ending(name)
    return None if ending in FORMATS else _ENDINGS.get(ending)


# Text of formats that have no signature, under an ending of none.
_OBJ = re.compile(rb"(?m)^v[ \t]+[-+.\d]\S*[ \t]+[-+.\d]")
_GLTF = re.compile(rb'\s*\{(?s:.)*"asset"(?s:.)*"(?:accessors|meshes|scenes|buffers|nodes)"\s*:')


def text_type(look: Look) -> str | None:
    """Return the type that text without a signature may be read as: rows of numbers, OBJ or glTF."""
    start = look.start[:_LONGEST_START]
    if b"\0" in start:
        return None
    if _GLTF.match(look.start):
        return "gltf"
    if has_rows(start):
        return "txt"
    return "obj" if _OBJ.search(start) else None


def content_of(look: Look, name: str, file_type: str) -> str | None:
    """Return in words what a file that cannot be read as `file_type` is by its content; None if nothing is known."""
    known = known_type(look)
    if known is not None:
        return None if FORMATS[known] == FORMATS[file_type] else _as(known)
    foreign = foreign_content(look, name)
    if foreign is not None:
        # A .gltf is JSON, which may be broken.
        return None if (foreign.what, FORMATS[file_type]) == ("JSON", "gltf") else str(foreign)
    other = text_type(look)
    return None if other is None or FORMATS[other] == FORMATS[file_type] else _as(other)


def type_under_other_ending(look: Look, name: str) -> tuple[str | None, str]:
    """Return the type of a file whose ending is none of ours, or None and the words that refuse it."""
    known = known_type(look)
    # Prose may begin with these words.
    must_have = {"stl": b"facet", "pcd": b"data"}.get(known or "", b"")
    if known is not None and (b"\0" in look.start or must_have in look.start.lower()):
        return known, ""
    foreign = foreign_content(look, name)
    if foreign is None:
        other = text_type(look)
        if other is not None:
            return None, _as(other)
        foreign = foreign_ending(name)
    return None, refusal_of_ending(name) if foreign is None else str(foreign)


_EXPORT = "export it as .ply, .las, .obj or .glb"


def refusal_of_ending(name: str) -> str:
    """Return the words for a file that is known by its name alone, whose ending is none of ours."""
    foreign = foreign_ending(name)
    if foreign is not None:
        return str(foreign)
    ending = _ending(name)
    if not ending:
        return 'no file extension, and unknown content; pass file_type="txt" if it has rows of numbers'
    return f"unknown file extension .{ending}, and its content matches no supported format; {_EXPORT}"


def instead_of_clouds(names: Iterable[str]) -> str:
    """Return the words about a folder without a cloud: the first file of another program, or what can be read."""
    for name in names:
        foreign = foreign_ending(name)
        if foreign is not None and foreign.step != _NO_POINTS:
            return f"{PurePath(name).name} is {foreign}"
    endings = ", ".join(f".{ending}" for ending in sorted(FORMATS) if ending not in TYPES_BY_OPTION)
    return f"supported: {endings}; with file_type also {', '.join(TYPES_BY_OPTION)}"


def _as(file_type: str) -> str:
    words = {"txt": "rows of numbers as text", "spz": "splats in SPZ", "colmap": "points of COLMAP"}
    return f'{words.get(file_type, file_type.upper())}; pass file_type="{file_type}"'


def _ending(name: str) -> str:
    return PurePath(name).suffix.lower().removeprefix(".")
