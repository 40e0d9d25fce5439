"""Codes of labeled tiles that are learned together: of points or of faces, with one meaning in all files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hf_any3d.data.checks.left_out_points import left_out_words, share_words
from hf_any3d.data.classes.class_rule import NO_CODES, ClassRule
from hf_any3d.data.classes.las_classes import ASPRS_CLASSES, CURRENT, UNCLASSIFIED, Kind, kind_of, names_of
from hf_any3d.data.files.label_words import common_names
from hf_any3d.utils.messages import listed
from hf_any3d_survey.tiles.reading import TileFacts

POINTS, FACES = "points", "faces"
"""What labels are of; vertices are points."""
OWN_SHARE = 0.01
"""Share of the labeled points from which on a code of the user's own is a class by itself: whoever marks cars in LAS
has no other codes for them. Surveys have stray ones, such as 64 for cranes, 0.07 % of the points of French tiles."""
_SELDOM_MISSED = (*UNCLASSIFIED, 7, 18)


def what_is_labeled(tiles: Sequence[TileFacts]) -> str:
    """Return whether points or faces are learned, faces where all files have labels of both.

    Numbers of vertices in one file and of faces in another may be of different classes, which is an error.
    """
    if all(tile.face_codes for tile in tiles):
        return FACES
    if all(tile.codes for tile in tiles):
        return POINTS
    # Some file has no labels of points, and another none of faces.
    of_faces = next(tile.path for tile in tiles if not tile.codes)
    of_points = next(tile.path for tile in tiles if not tile.face_codes)
    raise ValueError(
        f"{of_faces}: labels are on faces, but in {of_points.name} on vertices; use the same in all files"
    )


def with_codes_of(tile: TileFacts, labeled: str) -> TileFacts:
    """Return the facts with the codes of faces in place of those of points, if faces are learned."""
    return replace(tile, codes=tile.face_codes) if labeled == FACES else tile


def with_common_words(tiles: Sequence[TileFacts]) -> list[TileFacts]:
    """Return the facts with one list of words for all tiles, whose numbers are the codes; as they are without words.

    Raises:
        ValueError: Classes are words in one tile, and numbers in another one.
    """
    words = common_names(tile.words for tile in tiles)
    if not words:
        return list(tiles)
    numbered = [tile for tile in tiles if tile.words is None]
    if numbered:
        worded = next(tile for tile in tiles if tile.words is not None)
        raise ValueError(
            f"{numbered[0].path}: labels are numbers, but words in {worded.path.name}; use the same in all files"
        )
    common = []
    for tile in tiles:
        # Not labeled points keep their negative number.
        codes = {code: words.index((tile.words or ())[code]) if code >= 0 else code for code in tile.codes}
        counts = Counter({codes[code]: count for code, count in tile.codes.items()})
        common.append(replace(tile, codes=counts, words=words))
    return common


def with_one_table(tiles: Sequence[TileFacts]) -> tuple[list[TileFacts], list[str]]:
    """Return the facts with a table of codes for each tile, and a remark on codes that are taken for those of LAS.

    Classes are joined by their codes, so that in one folder with LAS they mean what LAS says in other files, too.
    """
    others = [tile.path.name for tile in tiles if tile.table is None]
    if not 0 < len(others) < len(tiles):
        return list(tiles), []
    remark = f"classes: those of {listed(others, 3)} are read as LAS codes, as the other files are LAS"
    return [replace(tile, table=tile.table or CURRENT) for tile in tiles], [remark]


def with_learned_codes(tiles: Sequence[TileFacts], rule: ClassRule) -> list[TileFacts]:
    """Return the facts with the codes that are learned, apart from those that are left out."""
    tiles = [_parted(tile, {code for code in tile.codes if rule.is_ignored(code, tile.table)}) for tile in tiles]
    # A few points with a code of the user's own are no class, unless they are named.
    codes = sum((tile.codes for tile in tiles), Counter())
    own = {code for tile in tiles for code in tile.codes if rule.is_own(code, tile.table)}
    few = {code for code in own if codes[code] < OWN_SHARE * codes.total()}
    return [_parted(tile, few) for tile in tiles]


def _parted(tile: TileFacts, left_out: set[int]) -> TileFacts:
    """Return the facts with some codes among those that are left out."""
    learned = Counter({code: count for code, count in tile.codes.items() if code not in left_out})
    return replace(tile, codes=learned, left_out=tile.left_out + tile.codes - learned)


def remarks_on_codes(tiles: Sequence[TileFacts], rule: ClassRule) -> list[str]:
    """Return remarks on points whose class is not learned although it was not named, and on how to learn it."""
    remarks = []
    flagged = sum((tile.not_counted for tile in tiles), Counter())
    if flagged:
        remarks.append(left_out_words(flagged, sum(tile.points for tile in tiles)))
    left_out = sum((tile.left_out for tile in tiles), Counter())
    # Who gives codes to ignore, or has numbers without a meaning, knows what is left out.
    if rule.ignored is not None or not left_out or all(tile.table is None for tile in tiles):
        return remarks
    total = left_out.total() + sum(tile.codes.total() for tile in tiles)
    # The largest first
    codes = [code for code, _ in left_out.most_common()]
    named = [f"{code} {_meaning(code, tiles)}, {share_words(left_out[code], total)}" for code in codes]
    # What is most likely missed: the largest of those that are not simply unclassified or noise
    missed = next((code for code in codes if code not in _SELDOM_MISSED), codes[0])
    others = ",".join(map(str, sorted({*codes} - {missed}))) or NO_CODES
    learn = f"--ignore {others} learns {missed}" + ("" if others == NO_CODES else f", --ignore {NO_CODES} all")
    return [*remarks, f"not used for training: class {'; '.join(named)} of the labels; {learn}"]


def _meaning(code: int, tiles: Sequence[TileFacts]) -> str:
    """Return what a code is called in the first of the tiles whose class is left out."""
    table = next((tile.table for tile in tiles if code in tile.left_out), None)
    if table is None:
        return "without a meaning"
    kind = kind_of(code, table)
    if kind is Kind.OWN:
        return "user-defined"
    if kind is Kind.FLAGGED:
        return f"withheld {ASPRS_CLASSES[code & 31]}"
    return names_of(table).get(code, "reserved")
