"""ModelNet40 for generative classification, where a language model names the class of a cloud in words."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import DatasetDict, Features, IterableDatasetDict, Value

from hf_any3d.data.catalog import modelnet40
from hf_any3d.data.catalog.modelnet40 import pickle_source
from hf_any3d.data.catalog.objaverse_captions import CONVERSATIONS, NUM_POINTS, cloud_features
from hf_any3d.data.catalog.pointllm_annotations import CLASSIFICATION_QUESTIONS, POINT, SPEAKERS
from hf_any3d.data.files import file_errors
from hf_any3d.data.options import one_of
from hf_any3d.data.parquet import PublishedDataset, load_published
from hf_any3d.data.parquet.rows import checked_row

FILE = "modelnet40_test_8192pts_fps.dat"
PLACES = ("modelnet40_data", "data/modelnet40_data", "", *modelnet40.LAYOUTS["pickle"][1])

DATASET = PublishedDataset(
    name="modelnet40_generative",
    description=(
        "The 2,468 test models of ModelNet40 as clouds of 8,192 points without color, each with a question about "
        "what it is and the name of its class in words. There is no training split: the models of this task have seen "
        "none."
    ),
    homepage="https://modelnet.cs.princeton.edu/",
    license=modelnet40.LICENSE,
    citation=modelnet40.CITATION,
    expected_counts={"default": {"test": 2468}},
    origin=(
        "Get the file by `hf download RunsenXu/PointLLM modelnet40_test_8192pts_fps.dat --repo-type dataset` (its "
        "page is https://huggingface.co/datasets/RunsenXu/PointLLM) and pass its folder as data_dir"
    ),
    layout="  modelnet40_data/modelnet40_test_8192pts_fps.dat   modelnet40_data/ may be left out",
    class_names=tuple(name.replace("_", " ") for name in modelnet40.CLASS_NAMES),
)


def load(
    data_dir: str | os.PathLike | None = None, *, question: int = 0, **conversion: Any
) -> DatasetDict | IterableDatasetDict:
    """Read the test models with a question.

    Rows have `points` (8192, 3), y up, as in the file, neither centered nor scaled; `colors` (8192, 3), all 0, since
    the models of this task take colored clouds and these have no colors; `label`, with class names in words ("tv
    stand"); `object_id`, the row's number; and `conversations`, the question and the class as the answer, in the
    format of `objaverse_captions`.

    Args:
        data_dir: the folder with the file, or one above it. The file is a pickle, read without Python's unpickler.
        question: 0 for "What is this?", 1 for "This is an object of ", which ends with a blank.
        conversion: `cache_dir`, `verify`, `on_error` and `streaming` of `hf_any3d.data.parquet.load_published`.

    Source: Xu et al., "PointLLM", Sec. 4.
    """
    one_of("question", question, range(len(CLASSIFICATION_QUESTIONS)))
    root = DATASET.root(data_dir)
    paths = [root / place / FILE for place in PLACES]
    # Errors name the first of these places if the file is in none.
    path = next((path for path in paths if path.is_file()), paths[0])
    DATASET.require([path], root)

    columns = {"label": DATASET.class_label(), "object_id": Value("string"), **CONVERSATIONS}
    features = Features({**cloud_features(colors=True), **columns})
    source = pickle_source(path)
    # Only the label is checked here, as its name becomes the answer; the row is checked as a whole afterwards.
    labels = Features({"label": features["label"]})
    black = np.zeros((NUM_POINTS, 3), np.float32)
    text = f"{POINT}\n{CLASSIFICATION_QUESTIONS[question]}"

    def read(number: int) -> Iterator[Mapping[str, object]]:
        # Rows of the cache, to which question, answer and the missing colors are added
        for row in source.read(number):
            with file_errors(source.describe(number), "row of the cache"):
                label = checked_row(row, labels)["label"]
            turns = zip(SPEAKERS, (text, DATASET.class_names[label]), strict=True)
            conversations = [{"from": speaker, "value": value} for speaker, value in turns]
            yield {**row, "colors": black, "object_id": str(number), "conversations": conversations}

    options = {"question": question}
    return load_published(DATASET, root, {"test": replace(source, read=read)}, features, options=options, **conversion)
