"""``hiap.push("folder", "owner/name")``: a saved network to a model hub."""

from __future__ import annotations

from pathlib import Path

from hiap.formats.card import NAME as CARD
from hiap.formats.folder import StoreError
from hiap.formats.hub import NAMES, is_name, why
from hiap.formats.online import at_hand
from hiap.formats.store import load


def push(folder: str | Path, name: str, private: bool = False) -> str:
    """Upload a folder of ``hiap.save`` to the hub's repository ``owner/name``, which is made (``private`` or not) if it
    is not there. Returns its address. Raises ``StoreError`` (one line), before anything is sent if the folder holds no
    network that loads, if the name is none, or if a card is there that would then describe another network."""
    if not is_name(name):
        raise StoreError(f"{name!r}: not a name of the hub; expected owner/name")
    if not Path(folder).is_dir():
        raise StoreError(f"{folder}: no such folder; expected one of hiap.save")
    load(Path(folder))
    import huggingface_hub as hub

    try:
        with at_hand():
            address = hub.create_repo(name, private=private, exist_ok=True)
            if not (Path(folder) / CARD).exists() and hub.file_exists(name, CARD):
                raise StoreError(f"{name}: has a {CARD} of another network, and {folder} none; save it with card=...")
            hub.upload_folder(
                repo_id=name, folder_path=folder, allow_patterns=NAMES, commit_message="A network of hiap.save"
            )
    except StoreError:
        raise
    except Exception as error:  # huggingface_hub and the client under it raise dozens of kinds
        raise StoreError(f"{name}: the hub did not take it ({why(error)}); {folder} is as it was") from None
    return str(address)
