"""core.errors: every class shows itself rightly on the command line and in OpenAI's shape."""

import errno
import inspect
import shutil
from pathlib import Path

import pytest

from core import errors
from core.errors import LoamError, NotFound, StorageFull, describe_os_error

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, LoamError)]


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda value: value.__name__)
def test_openai_body_has_all_four_fields(error_class: type[LoamError]) -> None:
    body = error_class("m", param="p").to_openai()
    assert body == {
        "error": {"message": "m", "type": error_class.openai_type, "param": "p", "code": error_class.openai_code}
    }


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda value: value.__name__)
def test_the_tree_in_the_module_docstring_is_true(error_class: type[LoamError]) -> None:
    assert errors.__doc__
    if error_class is LoamError:
        return
    line = next(line for line in errors.__doc__.splitlines() if f"─ {error_class.__name__} " in line)
    assert line.split()[-4:] == [
        str(error_class.exit_code),
        str(error_class.http_status),
        error_class.openai_type,
        error_class.openai_code,
    ]


def test_client_errors_are_4xx_and_server_errors_5xx() -> None:
    for error_class in CLASSES:
        is_client_error = error_class.openai_type == "invalid_request_error"
        assert (400 <= error_class.http_status < 500) == is_client_error, error_class


def test_full_disk_and_missing_file_are_told_apart(tmp_path: Path) -> None:
    full = describe_os_error(OSError(errno.ENOSPC, "No space left on device"), "write x")
    assert isinstance(full, StorageFull)
    assert "write x" in full.message
    assert "Free some disk space" in full.message
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "nowhere").symlink_to(tmp_path / "none")
    with pytest.raises(shutil.Error) as raised:
        shutil.copytree(tmp_path / "folder", tmp_path / "copy")
    lost = describe_os_error(raised.value, "copy it")
    assert isinstance(lost, NotFound)
    assert lost.message.startswith("Could not copy it: No such file or directory (")
    assert "nowhere" in lost.message
    missing = describe_os_error(FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "read a/b")
    assert isinstance(missing, NotFound)
    assert "a/b" in missing.message
