"""Device and quantization arguments for loading an encoder."""

from __future__ import annotations

from typing import Any

import torch


def encoder_loading(device_map: Any, quantization_config: Any) -> dict[str, Any]:
    """Return `from_pretrained` arguments of an encoder for those of the full model.

    Args:
        device_map: A device, its name, "auto" for the fastest one, or a dictionary that names one device; None for the
            CPU. The encoder's layers are called one by one on outputs of the rest of the model, so all have to be on
            one device.
        quantization_config: A quantization config of transformers; None for full weights.

    Raises:
        ValueError: If the dictionary names several devices.
    """
    loading = {} if quantization_config is None else {"quantization_config": quantization_config}
    return loading if device_map is None else loading | {"device_map": {"": single_device(device_map)}}


def single_device(device_map: Any) -> Any:
    """Return the device that a `device_map` names, see `encoder_loading`.

    Raises:
        ValueError: If a dictionary names several devices.
    """
    if isinstance(device_map, dict):
        devices = set(device_map.values())
        if len(devices) != 1:
            raise ValueError(f"device_map={device_map}; expected one device for the whole model")
        return devices.pop()
    if device_map == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return device_map
