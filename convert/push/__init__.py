"""Publishing: a finished directory goes to a repository on the Hub, with a model card made from the files in it.

from gqa.convert.push import PushOptions, push_checkpoint
push_checkpoint(PushOptions(directory=Path("llama-gqa8"), repo_id="me/llama-gqa8", private=True))
"""

from typing import TYPE_CHECKING

from gqa.convert.lazy import lazily

if TYPE_CHECKING:
    from gqa.convert.push.options import PushOptions
    from gqa.convert.push.publish import Parcel, Published, pack, push_checkpoint

__all__ = ["Parcel", "Published", "PushOptions", "pack", "push_checkpoint"]

__getattr__ = lazily(
    __name__,
    {
        "Parcel": "gqa.convert.push.publish:Parcel",
        "Published": "gqa.convert.push.publish:Published",
        "PushOptions": "gqa.convert.push.options:PushOptions",
        "pack": "gqa.convert.push.publish:pack",
        "push_checkpoint": "gqa.convert.push.publish:push_checkpoint",
    },
)
