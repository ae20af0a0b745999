"""What lets checkpoints of our classes bring their code when transformers saves them.

transformers copies the file of a class that it loaded with `trust_remote_code`. Classes that `register` made known are
modules of this package, several of them and of no use elsewhere, so the one file that joins them is written instead.
"""

import functools
from pathlib import Path
from typing import Any

from gqa.convert.modeling import single_file


def bring_code(model_type: str, config_class: type[Any]) -> None:
    """Let whatever saves a configuration of that class, as saving a model does, write the file and its `auto_map`.

    Done twice, it is done once.
    """
    if "save_pretrained" in vars(config_class):
        return
    inherited = config_class.save_pretrained

    @functools.wraps(inherited)
    def save_pretrained(config: Any, save_directory: Any, *arguments: Any, **more: Any) -> None:
        config.auto_map = single_file.settings(model_type)["auto_map"]
        inherited(config, save_directory, *arguments, **more)
        file = Path(save_directory) / single_file.file_name(model_type)
        file.write_text(single_file.source(model_type), encoding="utf-8")

    config_class.save_pretrained = save_pretrained
