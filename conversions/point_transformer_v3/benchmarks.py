"""Benchmarks of segmentation: how clouds are prepared for their models, and class names and colors.

Names and colors are those that the benchmarks publish, in the order of their classes.
"""

from dataclasses import dataclass

from hf_any3d.data.catalog import nuscenes, s3dis

# "refridgerator" is the benchmark's own spelling.
_SCANNET = (
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, desk, curtain, "
    "refridgerator, shower curtain, toilet, sink, bathtub, otherfurniture"
)
_SCANNET_COLORS = (
    "aec7e8 98df8a 1f77b4 ffbb78 bcbd22 8c564b ff9896 d62728 c5b0d5 9467bd c49c94 17becf f7b6d2 dbdb8d ff7f0e 9edae5 "
    "2ca02c 708090 e377c2 5254a3"
)
_SCANNET200 = (
    "wall, chair, floor, table, door, couch, cabinet, shelf, desk, office chair, bed, pillow, sink, picture, window, "
    "toilet, bookshelf, monitor, curtain, book, armchair, coffee table, box, refrigerator, lamp, kitchen cabinet, "
    "towel, clothes, tv, nightstand, counter, dresser, stool, cushion, plant, ceiling, bathtub, end table, dining "
    "table, keyboard, bag, backpack, toilet paper, printer, tv stand, whiteboard, blanket, shower curtain, trash can, "
    "closet, stairs, microwave, stove, shoe, computer tower, bottle, bin, ottoman, bench, board, washing machine, "
    "mirror, copier, basket, sofa chair, file cabinet, fan, laptop, shower, paper, person, paper towel dispenser, "
    "oven, blinds, rack, plate, blackboard, piano, suitcase, rail, radiator, recycling bin, container, wardrobe, soap "
    "dispenser, telephone, bucket, clock, stand, light, laundry basket, pipe, clothes dryer, guitar, toilet paper "
    "holder, seat, speaker, column, bicycle, ladder, bathroom stall, shower wall, cup, jacket, storage bin, coffee "
    "maker, dishwasher, paper towel roll, machine, mat, windowsill, bar, toaster, bulletin board, ironing board, "
    "fireplace, soap dish, kitchen counter, doorframe, toilet paper dispenser, mini fridge, fire extinguisher, ball, "
    "hat, shower curtain rod, water cooler, paper cutter, tray, shower door, pillar, ledge, toaster oven, mouse, "
    "toilet seat cover dispenser, furniture, cart, storage container, scale, tissue box, light switch, crate, power "
    "outlet, decoration, sign, projector, closet door, vacuum cleaner, candle, plunger, stuffed animal, headphones, "
    "dish rack, broom, guitar case, range hood, dustpan, hair dryer, water bottle, handicap bar, purse, vent, shower "
    "floor, water pitcher, mailbox, bowl, paper bag, alarm clock, music stand, projector screen, divider, laundry "
    "detergent, bathroom counter, object, bathroom vanity, closet wall, laundry hamper, bathroom stall door, ceiling "
    "light, trash bin, dumbbell, stair rail, tube, bathroom cabinet, cd case, closet rod, coffee kettle, structure, "
    "shower head, keyboard piano, case of water bottles, coat rack, storage organizer, folded chair, fire alarm, "
    "power strip, calendar, poster, potted plant, luggage, mattress"
)
_SCANNET200_COLORS = (
    "aec7e8 bcbd22 98df8a ff9896 d62728 5b87e5 1f77b4 e55b68 f7b6d2 5be56e ffbb78 8d5be5 708090 c49c94 c5b0d5 2ca02c "
    "9467bd e55bdf dbdb8d c0e55b 58da89 3a6289 b152ef ff7f0e edcc25 29ce20 3e8f94 220e82 8f2d73 893f0e 17becf 10d48b "
    "5a77c9 7d1e8d 963538 bac53e e377c2 266480 781ff3 9a3b67 a9894e 8ff56f 25e6cd 0e109b c433b6 ed5026 8aaf3e 9edae5 "
    "2660a7 be4df6 d03154 d0c148 37dc39 0a7d8c 4c26ca bf1c87 d3782a 76ae4c 11f2ab 1441f7 d03dde a23e3c d2eb3e 2d9848 "
    "236b95 a059ed e3387d a98f51 2a8f14 19a097 524be3 fd3bde f08259 7bac2f 47c285 185ecd 8610b3 9f2034 d5d058 409e46 "
    "12a3c2 411d99 b10a6d 985307 53af1e 12c799 3d51d0 d555d8 aa352a a1c026 17f15b 0c67aa 9729f5 853350 b8a25b 328a26 "
    "1fedec 2713d0 df1bb4 fe8d55 619027 6ae7b0 0c3da2 7c428c 894249 fafd1a 37bf49 3c7e92 996cea b83a7d 87540e 8bf85b "
    "35c8ac 3f4586 be4bba 7f3f34 8db619 389059 40a0fa b656f5 8b1235 867836 31a52a 338085 2c15a3 e85dc1 b06636 74d911 "
    "36d196 3c63cc 812b90 fc646a bbc449 0d9e28 347a98 804cca bb3273 b48d47 4dd023 48b7a8 6163cb ac169e 9b4028 769f1e "
    "45fc94 2d67ad 6f2695 b80931 bcae43 35ce35 61ebfc 4220b6 ec72c3 f19a53 85f034 10cd90 4b65c6 ed5ffb bf3431 e3fe36 "
    "31ce57 307196 7d49b6 e52072 9e771c 3ccd1b 12d7c9 4f4c99 860d74 c0613f 6ca312 5fdc9c 628dd0 9013c1 a62439 d4ca22 "
    "17ce22 5bd3ec 4f3789 b61375 864c0e 57b91c 52e0bb 5c6ed6 a850ab c53f33 afc74d 3eb462 085b96 4d0f82 9a4160 c5980b "
    "3b9b2d 0c9391 3623db d249b5 dd7c4d 95d642 48b986 2a5ec6"
)
_S3DIS_COLORS = "00ff00 0000ff 00ffff ffff00 ff00ff 6464ff c8c864 aa78c8 ff0000 c86464 0ac864 c8c8c8 323232"
_NUSCENES_COLORS = (
    "708090 dc143c ff7f50 ff9e00 e99646 ff3d63 0000e6 2f4f4f ff8c00 ff6347 00cfbf af004b 4b004b 70b43c deb887 00af00"
)
# No colors are published, and no weights either: the data set's terms forbid them.
_WAYMO = (
    "Car, Truck, Bus, Other Vehicle, Motorcyclist, Bicyclist, Pedestrian, Sign, Traffic Light, Pole, "
    "Construction Cone, Bicycle, Motorcycle, Building, Vegetation, Tree Trunk, Curb, Road, Lane Marker, Other Ground, "
    "Walkable, Sidewalk"
)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of semantic segmentation.

    Args:
        title: Its name.
        names: Of its classes, in their order, separated by commas.
        preset: Of `VOXEL_PRESETS`: how its clouds are prepared.
        reads_coordinates: Whether models read xyz as channels.
        channels: Channels of a point that models read.
        colors: Of its classes, hexadecimal, separated by spaces; empty if it publishes none.
    """

    title: str
    names: str
    preset: str
    reads_coordinates: bool = False
    channels: int = 6
    colors: str = ""

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.names.split(", ")

    @property
    def hex_colors(self) -> list[str] | None:
        """Colors of the classes, "#rrggbb"; None if the benchmark publishes none."""
        return [f"#{color}" for color in self.colors.split()] or None


BENCHMARKS: dict[str, Benchmark] = {
    "scannet": Benchmark("ScanNet", _SCANNET, "scannet", colors=_SCANNET_COLORS),
    "scannet200": Benchmark("ScanNet200", _SCANNET200, "scannet", colors=_SCANNET200_COLORS),
    "s3dis": Benchmark("S3DIS", ", ".join(s3dis.CLASS_NAMES), "s3dis", colors=_S3DIS_COLORS),
    "nuscenes": Benchmark("nuScenes", ", ".join(nuscenes.CLASS_NAMES), "nuscenes", True, 4, _NUSCENES_COLORS),
    "waymo": Benchmark("Waymo", _WAYMO, "waymo", True, 4),
}
"""Name of `hf-any3d convert --dataset` -> benchmark."""

# In the order of the heads of published files, which is not that of their norms.
CONDITION_CLASSES: dict[str, list[int]] = {
    "Structured3D": [*range(9), 11, *range(13, 22), 23, 25, 26, 33, 34, 35],
    "ScanNet": [*range(10), 11, 12, 13, 15, 20, 22, 24, 25, 27, 34],
    # The texts in their order, not in that of the classes: column 0 was trained as ceiling and has the text wall.
    "S3DIS": [0, 1, *range(4, 9), 10, 19, *range(29, 33)],
}
"""Numbers, for each class of a data set, of the 36 texts whose embeddings are in files of several data sets."""
