"""Files well formed except for their claims, which are small, as the limits are set low."""

import io
import json
import struct
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow

from hf_any3d.data.files import gltf as gltf_reader, source, threemf as threemf_reader
from tests.data.files.builders import gltf, las, npy, threemf, threemf_model
from tests.data.files.seeds import Seed
from tests.fuzz.fuzz_files import FilesOf

WILD = [0, 1, 2, 3, 40, 255, 256, 65535, 65536, 10**6, 2**24, 10**8, 2**31 - 1, 2**31, 2**32 - 1, 10**10, 10**12]
WILD += [2**53, 2**61 - 1, 2**63 - 1, 2**63, 10**18, 10**30, -1, -(2**31)]


class Crafted(FilesOf):
    """Files that may be larger than the damaged ones, under the usual limits."""

    megabytes = 1024
    inputs = 60

    def pick(self, generator: np.random.Generator, choices):
        """Choose an item of a list of any type."""
        return choices[int(generator.integers(len(choices)))]

    def count(self, generator: np.random.Generator, valid: int) -> int:
        """Return the valid number, or sometimes a wild one."""
        return self.pick(generator, WILD) if generator.random() < self.wildness else valid

    def make(self, generator: np.random.Generator, folder: Path) -> Seed:  # noqa: D102
        # So that some inputs get past the first check.
        self.wildness = self.pick(generator, [0.02, 0.1, 0.5])
        return self.craft(generator, folder)

    def craft(self, generator: np.random.Generator, folder: Path) -> Seed:
        """Make an input."""
        raise NotImplementedError

    def size(self, generator: np.random.Generator, most: int = 20) -> int:
        """Return a size up to two to the power of `most`, uniform in its logarithm."""
        return int(2 ** generator.uniform(0, most))


class WildHeaders(Crafted):
    """Headers that declare any counts, types and names over bodies of up to a megabyte."""

    name = "wild headers"

    def craft(self, generator: np.random.Generator, folder: Path) -> Seed:  # noqa: D102
        kind = self.pick(generator, ["ply", "off", "pcd", "las", "stl", "npy", "pts", "xyz", "obj"])
        return {f"some.{kind}": getattr(self, f"_{kind}")(generator)}

    def _body(self, generator: np.random.Generator, most: int = 20) -> bytes:
        size = self.size(generator, most)
        return self.pick(
            generator,
            [
                lambda: bytes(size),
                lambda: generator.bytes(size),
                lambda: generator.integers(0, 5, size, np.uint8).tobytes(),
                lambda: generator.random(size // 8 + 1, np.float32).tobytes(),
                lambda: b"".join(b"%d " % value for value in generator.integers(0, 9, size // 4 + 1)),
                lambda: (
                    self.pick(generator, [b"0\n", b"1 2 3\n", b"3 0 1 2\n", b"0 0 0\n", b"f 1 1 1\n"]) * (size // 6)
                ),
            ],
        )()

    def _ply(self, generator: np.random.Generator) -> bytes:
        types = ["char", "uchar", "short", "ushort", "int", "uint", "float", "double", "int8", "float64"]
        lines = ["ply", f"format {self.pick(generator, ['ascii', 'binary_little_endian', 'binary_big_endian'])} 1.0"]
        many = generator.random() < 0.1
        for element in ["vertex", "face", "other"][: int(generator.integers(1, 4))] * (40 if many else 1):
            lines.append(f"element {element} {self.count(generator, self.size(generator))}")
            names = list("xyz") + ["red", "vertex_indices", "label"]
            for number in range(int(generator.integers(0, 4000 if many and generator.random() < 0.3 else 7))):
                kind, name = self.pick(generator, types), names[number] if number < 6 else f"p{number}"
                is_list = generator.random() < (0.7 if "indices" in name else 0.15)
                lines.append(f"property {'list ' + self.pick(generator, types) + ' ' if is_list else ''}{kind} {name}")
        return "\n".join([*lines, "end_header\n"]).encode() + self._body(generator)

    def _off(self, generator: np.random.Generator) -> bytes:
        head = self.pick(generator, ["OFF\n", "COFF\n", "NOFF ", "OFF"])
        return f"{head}{self.count(generator, 4)} {self.count(generator, 2)} 0\n".encode() + self._body(generator)

    def _pcd(self, generator: np.random.Generator) -> bytes:
        fields = ["x", "y", "z"] + [self.pick(generator, ["rgb", "label", "_", "x", "w", "f0"])] * int(
            generator.choice([0, 1, 2, 3000], p=[0.4, 0.4, 0.15, 0.05])
        )
        width = self.count(generator, self.size(generator, 16))
        lines = [f"FIELDS {' '.join(fields)}"]
        lines.append("SIZE " + " ".join(str(self.pick(generator, [4, 4, 4, 1, 2, 8, 16])) for _ in fields))
        lines.append("TYPE " + " ".join(self.pick(generator, ["F", "F", "F", "U", "I"]) for _ in fields))
        if generator.random() < 0.5:
            lines.append("COUNT " + " ".join(str(self.count(generator, 1)) for _ in fields))
        lines += [f"WIDTH {width}", f"HEIGHT {self.count(generator, 1)}"]
        if generator.random() < 0.3:
            lines.append(f"POINTS {self.count(generator, width)}")
        lines.append(f"DATA {self.pick(generator, ['ascii', 'binary', 'binary_compressed'])}")
        return "\n".join(lines).encode() + b"\n" + self._body(generator)

    def _las(self, generator: np.random.Generator) -> bytes:
        head = bytearray(375)
        head[:4], head[24:26] = b"LASF", bytes([1, int(generator.integers(5))])
        start, kind = self.count(generator, 375), int(generator.integers(140))
        size, number = self.count(generator, 34), self.count(generator, 1000)
        struct.pack_into("<I", head, 96, start % 2**32)
        struct.pack_into("<BHI", head, 104, kind, size % 2**16, number % 2**32)
        struct.pack_into("<Q", head, 247, self.count(generator, 0) % 2**64)
        head[131:179] = generator.bytes(48) if generator.random() < 0.3 else struct.pack("<6d", 1, 1, 1, 0, 0, 0)
        return bytes(head) + self._body(generator)

    def _stl(self, generator: np.random.Generator) -> bytes:
        if generator.random() < 0.5:
            facet = b"facet\nvertex 1 2 3\nvertex 1 2 3\nvertex 1 2 3\nendfacet\n"
            return b"solid\n" + facet * self.size(generator, 14) + b"endsolid\n"
        return bytes(80) + struct.pack("<I", self.count(generator, 40) % 2**32) + self._body(generator)

    def _npy(self, generator: np.random.Generator) -> bytes:
        shape = [self.count(generator, 3) for _ in range(int(generator.choice([0, 1, 2, 2, 2, 3, 33, 70])))]
        kinds = ["'<f4'", "'|u1'", "'<U0'", "'|S0'", "'|V0'", "('<f4',(3,))", "'|O'", "[('x','<f4'),('y','<f4',(9,))]"]
        kinds += ["'<M8[s]'", "'<f16'", "[('x','<f4'),('y','<f4'),('z','<f4')]", f"'<U{self.count(generator, 3)}'"]
        head = f"{{'descr': {self.pick(generator, kinds)}, 'fortran_order': {self.pick(generator, [True, False])}, "
        # Any literal of Python may stand where numpy writes a number.
        odd = ["True", "None", "1.5", "'3'", "[3]", "b'3'", "(3,)", "{3}", "-1", "0x3", "3j", "..."]
        sizes = [self.pick(generator, odd) if generator.random() < 0.1 else str(size) for size in shape]
        head += f"'shape': ({''.join(f'{size}, ' for size in sizes)})}}\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + self._body(generator)

    def _pts(self, generator: np.random.Generator) -> bytes:
        return f"{self.count(generator, 9)}\n".encode() + self._body(generator)

    def _xyz(self, generator: np.random.Generator) -> bytes:
        return self._body(generator)

    def _obj(self, generator: np.random.Generator) -> bytes:
        lines = [
            b"mtllib some.obj",
            b"mtllib ../some.obj",
            b"v 1 2 3",
            b"vn 0 0 1",
            b"usemtl a",
            b"f 1 1 1",
            b"f -1 1",
        ]
        lines += [
            b"f 1//1 1//1 1//1",
            b"f " + b"1 " * 2000,
            b"v " + b"1 " * 500,
            b"v 1 2 3 \\",
            b"newmtl a",
            b"Kd 1 1 1",
        ]
        lines += [b"f %d 1 1" % self.count(generator, 1), b"mtllib %d" % self.count(generator, 1)]
        some = generator.integers(0, len(lines), self.size(generator, 6))
        return b"v 1 2 3\n" + b"\n".join(lines[number] for number in some) * self.size(generator, 8)


class Expanding(Crafted):
    """Files that hold more than they seem to, under limits that begin at a few kilobytes."""

    megabytes = 128

    def attempt(self, case: Seed, folder: Path) -> None:  # noqa: D102
        low = {source: {"FREE_BYTES": 1 << 13}, gltf_reader: {"_MAX_PARTS": 50}, threemf_reader: {"_MAX_PARTS": 50}}
        with ExitStack() as patched:
            for module, limits in low.items():
                patched.enter_context(patch.multiple(module, **limits))
            super().attempt(case, folder)


class SharedAccessors(Expanding):
    """glTF whose primitives, nodes and accessors refer to the same few tables many times."""

    name = "shared accessors"

    def craft(self, generator: np.random.Generator, folder: Path) -> Seed:  # noqa: D102
        size = self.size(generator, 12)
        chunk = generator.bytes(size) if generator.random() < 0.3 else bytes(size)

        def number(most: int) -> int:
            return self.pick(generator, [-1, most, 10**9, "0", None, 1.5]) if generator.random() < 0.02 else int(
                generator.integers(max(most, 1))
            )  # fmt: skip

        views = [
            {"buffer": 0, "byteOffset": self.pick(generator, [0, 0, 0, 4, size // 2]),
             "byteLength": self.count(generator, size), **self.pick(generator, [{}] * 9 + [{"byteStride": 4}])}
            for _ in range(3)
        ]  # fmt: skip
        accessors = []
        for _ in range(6):
            kind = self.pick(generator, ["SCALAR", "VEC3"]) if self.wildness < 0.5 else "VEC4"
            component = self.pick(generator, [5121, 5121, 5123, 5125] if kind == "SCALAR" else [5121, 5126, 5126])
            width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[kind] * {5121: 1, 5123: 2, 5125: 4, 5126: 4}[component]
            entry = {"bufferView": number(3), "componentType": component, "type": kind}
            entry["count"] = self.count(generator, size // width)
            if generator.random() < 0.1:
                place = {"bufferView": number(3), "componentType": 5121}
                entry["sparse"] = {"count": self.count(generator, 9), "indices": place, "values": {"bufferView": 0}}
            accessors.append(entry)
        primitives = []
        for _ in range(int(generator.integers(1, 5))):
            scalars, vectors = ([at for at in range(6) if (accessors[at]["type"] == "SCALAR") == scalar] or [number(6)]
                                for scalar in (True, False))  # fmt: skip
            attributes = {"POSITION": self.pick(generator, vectors)}
            for name in ("NORMAL", "COLOR_0"):
                if generator.random() < 0.3:
                    attributes[name] = self.pick(generator, [attributes["POSITION"], *vectors])
            entry = {"attributes": attributes, "mode": int(generator.choice([0, 4, 4, 5, 6]))}
            if generator.random() < 0.6:
                entry["indices"] = self.pick(generator, scalars)
            primitives.append(entry)
        meshes = [{"primitives": primitives * self.size(generator, self.pick(generator, [2, 4, 6]))}]
        many = self.size(generator, self.pick(generator, [2, 4, 7]))
        nodes = [{"mesh": 0, **self.pick(generator, [{}, {"scale": [1, 2, 3]}, {"matrix": [1] * 16}])}] * many
        if generator.random() < 0.3:  # a chain
            nodes = [{"mesh": 0, "children": [place + 1]} for place in range(many)] + [{"mesh": 0}]
        document = {
            "scene": 0,
            "scenes": [{"nodes": [0] if "children" in nodes[0] else list(range(len(nodes)))}],
            "nodes": nodes,
            "meshes": meshes,
            "accessors": accessors,
            "bufferViews": views,
            "buffers": [{"byteLength": size}],
        }
        if generator.random() < 0.05:
            document["buffers"] = [
                {"byteLength": size, "uri": self.pick(generator, ["some.gltf", "../a", "data:,", 5])}
            ]
            return {"some.gltf": json.dumps({"asset": {"version": "2.0"}, **document}).encode()}
        return {"some.glb": gltf(document, chunk)}


class Packed(Expanding):
    """Compressed files that claim or contain more than the limits allow."""

    name = "packed tightly"
    inputs = 40

    def prepare(self, folder: Path) -> None:  # noqa: D102
        self.laz = [las(True, kind, count)[1] for kind in (2, 7) for count in (200, 20_000)]
        self.attempt({"some.laz": self.laz[0]}, folder)

    def count(self, generator: np.random.Generator, valid: int) -> int:
        """Return the valid number, or sometimes one that is not and that any reader can bear."""
        return (
            self.pick(generator, [0, 1, 255, 256, 65535, 65536, 10**6])
            if generator.random() < self.wildness
            else valid
        )

    def craft(self, generator: np.random.Generator, folder: Path) -> Seed:  # noqa: D102
        kind = self.pick(generator, ["npz", "npz", "pcd", "pcd", "laz", "laz", "spz", "3mf"])
        return {f"some.{kind}": getattr(self, f"_{kind.lstrip('3')}")(generator)}

    def _spz(self, generator: np.random.Generator) -> bytes:
        count, degree = self.size(generator, 12), self.pick(generator, [0, 3, 4])
        version = self.pick(generator, [2, 3, 4])
        head = struct.pack("<4sIIBBBB", b"NGSP", version, self.count(generator, count) % 2**32, degree, 12, 0, 5)
        if version < 4:
            packer = zlib.compressobj(1, wbits=31)
            body = packer.compress(head) + packer.compress(bytes(self.size(generator, 17)))
            return body + packer.flush()
        sizes = [self.count(generator, width * count) % 2**64 for width in (9, 1, 3, 3, 4)]
        packed = [pyarrow.compress(bytes(self.size(generator, 16)), codec="zstd", asbytes=True) for _ in sizes]
        table = b"".join(struct.pack("<QQ", len(own), size) for own, size in zip(packed, sizes, strict=True))
        return head + struct.pack("<I12x", 32) + table + b"".join(packed)

    def _mf(self, generator: np.random.Generator) -> bytes:
        """Vertices in few bytes, and an object that holds others."""
        row = self.pick(
            generator, ['<vertex x="1" y="2" z="3"/>', "<!-- -->", " ", '<triangle v1="0" v2="0" v3="0"/>']
        )
        inner = row * self.size(generator, 10)
        mesh = f"<mesh><vertices>{inner}</vertices><triangles/></mesh>"
        shapes = [f'<object id="0">{mesh}</object>']
        for number in range(1, int(generator.integers(1, 4))):
            inside = f'<component objectid="{self.pick(generator, [0, number - 1])}"/>' * int(generator.integers(4))
            shapes.append(f'<object id="{number}"><components>{inside}</components></object>')
        items = f'<item objectid="{len(shapes) - 1}"/>' * self.size(generator, 5)
        return threemf(threemf_model("".join(shapes), items))

    def _npz(self, generator: np.random.Generator) -> bytes:
        names = ["points", "xyz", "normals", "colors", "labels", "faces", "face_colors", "offset", "other"]
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in generator.choice(names, int(generator.integers(1, 6)), replace=generator.random() < 0.2):
                rows = self.size(generator, 13 if generator.random() < 0.3 else 6)
                kind = self.pick(generator, ["f4", "u1", "i8", "f8", "?"])
                content = npy(np.zeros((rows, 3), kind))
                if generator.random() < 0.2:  # another number of rows in the header
                    content = content.replace(b"(%d, 3)" % rows, b"(%d, 3)" % self.count(generator, rows))
                archive.writestr(f"{name}.npy", content)
        data = bytearray(file.getvalue())
        if generator.random() < 0.5:  # wrong sizes
            for mark, places in ((b"PK\x01\x02", (20, 24)), (b"PK\x03\x04", (18, 22))):
                at = data.find(mark) + self.pick(generator, places)
                data[at : at + 4] = struct.pack("<I", self.count(generator, 100) % 2**32)
        return bytes(data)

    def _pcd(self, generator: np.random.Generator) -> bytes:
        token = self.pick(generator, [b"\xe0\xff\x00", b"\x20\x00", b"\x00\x01", b"\xff\xff\xff", b"\x1f" + bytes(32)])
        number = self.size(generator, 9)
        body = b"\x00\x00" + token * number
        gives = 1 + {b"\xe0": 264, b"\x20": 3, b"\x00": 1, b"\xff": 264, b"\x1f": 32}[token[:1]] * number
        count = self.count(generator, gives // 12)
        claimed = self.count(generator, 12 * count) % 2**32
        lines = f"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH {count}\nHEIGHT 1\nDATA binary_compressed\n"
        return lines.encode() + struct.pack("<II", self.count(generator, len(body)) % 2**32, claimed) + body

    def _laz(self, generator: np.random.Generator) -> bytes:
        data = bytearray(self.pick(generator, self.laz))
        places = (96, 100, 105, 107, 247) if generator.random() < 0.7 else tuple(range(0, 375, 4))
        for _ in range(int(generator.integers(1, 3))):
            at = self.pick(generator, places)
            struct.pack_into("<I", data, at, self.count(generator, 30_000) % 2**32)
        if generator.random() < 0.5:
            start = struct.unpack_from("<I", data, 96)[0]
            at = min(max(start - int(generator.integers(60)), 0), len(data) - 4)
            struct.pack_into("<I", data, at, self.count(generator, 50_000) % 2**32)
        return bytes(data)


TARGETS = [WildHeaders(), SharedAccessors(), Packed()]
