"""Pretrained parts of models, whose weights are kept in repositories of their own.

Such as Any2Point's encoder, the point transformer under an adapter, and MiniGPT-3D's language model:

1. The config records the part in `parts` as a `PretrainedPart`: repository, commit, checksum of its tensors.
2. It is opened from there (`sources.open_recorded`), or from the folder next to an adapter, and its checksum compared.
3. It is frozen, and its tensors are remembered (`remember_weights`).
4. Saving compares them (`changed_tensors`), without adapters. An unchanged part is left out; a changed one is stored
   with the model, and its record says so, as is one from a directory of this machine. In place of a quantized one, the
   full weights that it was made of are stored; if it changed, it is refused.

`LibraryModelMixin` does this, also for repositories that hold only an adapter.
"""
