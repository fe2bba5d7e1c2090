import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from zfserve_runtime.access.callers_file import (
    CallerEntry,
    Callers,
    CallersFile,
    CallersFileError,
    new_token,
    read_callers_file,
    write_callers_file,
)

DIGEST = "ab" * 32
ENTRY = {"name": "shop", "token_sha256": DIGEST, "allow": ["classify"]}


def test_a_written_file_reads_back_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    content = CallersFile(callers=(CallerEntry(name="shop", token_sha256=DIGEST, allow=("classify",)),))
    file = tmp_path / "tokens.json"
    write_callers_file(file, content)
    assert read_callers_file(file) == content
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_tokens_are_long_distinct_and_found_by_their_digest_only() -> None:
    made = [new_token() for _ in range(3)]
    assert len({token for token, _ in made}) == 3
    assert all(len(token) >= 47 for token, _ in made)
    entries = tuple(
        CallerEntry(name=f"c{index}", token_sha256=digest, allow=("all",)) for index, (_, digest) in enumerate(made)
    )
    callers = Callers(CallersFile(callers=entries))
    assert [caller.name for token, _ in made if (caller := callers.find_by_token(token))] == ["c0", "c1", "c2"]
    assert callers.find_by_token(made[0][0] + "x") is callers.find_by_token("") is None


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("no json", "is not JSON"),
        ([], "callers: Input should be"),
        ({"callers": [{**ENTRY, "name": "a b"}]}, "callers.0.name: a caller's name has 1 to 64"),
        ({"callers": [{**ENTRY, "allow": []}]}, "callers.0.allow: "),
        ({"callers": [{**ENTRY, "allow": ["fly"]}]}, "callers.0.allow: fly permits nothing; choose from classify"),
        ({"callers": [{**ENTRY, "colour": "red"}]}, "callers.0.colour: "),
        ({"callers": [{"name": "shop", "allow": ["all"]}]}, "callers.0: shop has neither token_sha256 nor certificate"),
        ({"callers": [ENTRY, {**ENTRY, "name": "other"}]}, "callers: two callers have the same token_sha256"),
        ({"callers": [ENTRY, {**ENTRY, "token_sha256": "cd" * 32}]}, "callers: two callers have the same name"),
    ],
)
def test_an_error_names_the_faulty_field(tmp_path: Path, content: Any, fault: str) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(CallersFileError) as refused:
        read_callers_file(file)
    assert fault in str(refused.value)


def test_the_error_does_not_quote_a_token_pasted_in_place_of_its_digest(tmp_path: Path) -> None:
    token, _ = new_token()
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({"callers": [{**ENTRY, "token_sha256": token}]}))
    with pytest.raises(CallersFileError) as refused:
        read_callers_file(file)
    assert "callers.0.token_sha256" in str(refused.value)
    assert token not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_file_that_is_replaced_keeps_its_owner_and_mode(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    write_callers_file(file, CallersFile())
    file.chmod(0o640)
    owner = (12345, 54321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(file, *owner)
    write_callers_file(file, CallersFile())
    status = file.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (*owner, 0o640)
