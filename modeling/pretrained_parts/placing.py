"""Where an encoder is opened, and in how many bits."""

from __future__ import annotations

from typing import Any

import torch


def encoder_loading(device_map: Any, quantization_config: Any) -> dict[str, Any]:
    """What `from_pretrained` of an encoder is given for the same words of a whole model.

    Args:
        device_map: A device, its name, "auto" for the fastest one, or a dictionary that names one device; None for the
            CPU. The layers of the encoder are called one by one, with what the rest of the model made, so that all
            has to be in one place.
        quantization_config: A config of any method that transformers knows; None for full weights.

    Raises:
        ValueError: If the dictionary names several devices.
    """
    loading = {} if quantization_config is None else {"quantization_config": quantization_config}
    return loading if device_map is None else loading | {"device_map": {"": single_device(device_map)}}


def single_device(device_map: Any) -> Any:
    """The device that a `device_map` names, see `encoder_loading`.

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
