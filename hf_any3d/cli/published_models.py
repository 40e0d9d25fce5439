"""The table of published models that a command shows to whoever names none."""

from __future__ import annotations

from collections.abc import Iterator

from hf_any3d.hub.published_table import PUBLISHED, SIZE_MARK, published_for

# What published models are for, by words of their names: the dataset that they were trained on, or the program.
_SUBJECTS = {
    "shapenetpart": "parts of CAD models",
    "s3dis": "office rooms",
    "scannet": "indoor rooms",
    "sunrgbd": "rooms from one side",
    "spatiallm": "indoor rooms",
    "patchalign3d": "parts that you name",
    "find3d": "parts that you name",
    "openshape": "classes that you name",
    "uni3d": "classes that you name",
}


def published_models(command: str) -> Iterator[str]:
    """Yield the lines of a table of the published models that a command opens: name, purpose and license."""
    rows = {}
    variants = {}
    for name, sizes in published_for([command]).items():
        system = PUBLISHED[name].system
        # The first size is part of the name, and a few more are listed below it.
        label = name
        if sizes[0] is not None:
            label += f"{SIZE_MARK}{sizes[0]}"
        text = str(system.weights_license)
        if system.non_commercial:
            text += " *"
        subject = next((subject for word, subject in _SUBJECTS.items() if word in label.lower()), "")
        rows[label] = subject, text
        if len(sizes) > 1:
            variants[label] = ", ".join(map(str, sizes[:4])) + (", …" if len(sizes) > 4 else "")
    if not rows:
        yield "none is published; train one, or convert the authors' files: hf-any3d convert --help"
        return
    has_marks = any(text.endswith("*") for _, text in rows.values())
    yield f"published models{' (* non-commercial license; --accept-license accepts it once and for all)' * has_marks}:"
    width = max(map(len, rows))
    subject_width = max(len(subject) for subject, _ in rows.values())
    for label, (subject, text) in rows.items():
        yield f"{label:<{width}}  {subject:<{subject_width}}  {text}"
        if label in variants:
            yield f"  variants: {variants[label]}"
