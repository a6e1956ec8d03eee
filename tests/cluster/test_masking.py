"""Secrets: what is masked in everything that is stored or shown, and what is left as it is."""

import json
import shlex
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from pydantic import BaseModel, ConfigDict

from cluster.errors import RecipeError
from cluster.masking import redact
from cluster.settings import read

LITERAL = {
    "postgresql://me:hunter22@host/db": "postgresql://me:***@host/db",
    "postgresql://me:pa/ss@host/db": "postgresql://me:***@host/db",
    "postgresql://me:12/ss@host/db": "postgresql://me:***@host/db",
    "postgresql://me:p@ss@host/db": "postgresql://me:***@host/db",
    "postgresql://me:p?s#s@host/db": "postgresql://me:***@host/db",
    "postgresql://me:p%40ss@[::1]:5432/db": "postgresql://me:***@[::1]:5432/db",
    "postgresql://me:with blank@host/db": "postgresql://me:***@host/db",
    "redis://:hunter22@host/0": "redis://:***@host/0",
    "https://ghp_token@github.com/x": "https://***@github.com/x",
    "https://me:pa/ss@host/x": "https://me:***@host/x",
    "https://me:hunter22@host:8080/x?mail=a@b.c": "https://me:***@host:8080/x?mail=a@b.c",
    "postgresql://me:hunter22@host/db?application_name=a@b": "postgresql://me:***@host/db?application_name=a@b",
    "postgresql://me@host/db?password=hunter22&sslmode=require": "postgresql://me@host/db?password=***&sslmode=require",
    "postgresql://host/db?user=me&pass%77ord=hunter;22#x": "postgresql://host/db?user=me&pass%77ord=***",
    "postgresql://me:a@host/db?x=a@b&password=hunter22": "postgresql://me:***@host/db?x=a@b&password=***",
    "s3://bucket/key?secret_key=hunter22": "s3://bucket/key?secret_key=***",
    "https://bucket/key?X-Amz-Date=1&X-Amz-Signature=hunter22": "https://bucket/key?X-Amz-Date=1&X-Amz-Signature=***",
    "https://account/blob.csv?sv=2024&sig=hunter22": "https://account/blob.csv?sv=2024&sig=***",
    "https://host/x#access_token=hunter22": "https://host/x#access_token=***",
    "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dhunter22%3BServer%3Dhost": (
        "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D***%3BServer%3Dhost"
    ),
    "mssql+pyodbc:///?odbc_connect=UID=me;Pwd={hunter;22};Server=host": (
        "mssql+pyodbc:///?odbc_connect=UID=me;Pwd=***;Server=host"
    ),
    "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D%7Bhun%3Bter%7D%3BServer%3Dhost": (
        "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D***%3BServer%3Dhost"
    ),
    "http://127.0.0.1:80/?next=postgresql://me:hunter22@host/db": "http://127.0.0.1:80/?next=postgresql://me:***@host/db",
}

NO_SECRET = [
    "http://127.0.0.1:8265/ and s3://bucket/key and a@b.c",
    "http://127.0.0.1:8000/models/support@candidate",
    "https://host/models/support@candidate?top_k=3",
    "http://[::1]:8000/models/support@candidate",
    "s3://bucket/key?region=eu-central-1",
    "postgresql://me@host/db",
    "sqlite:///data/shop.db",
    "mail a@b.c: see postgresql://host/db",
    "SELECT password FROM people WHERE mail = 'a@b.c'",
]


class Typed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = ""
    size: int = 1


@pytest.mark.parametrize(("written", "stored"), LITERAL.items())
def test_a_secret_written_into_an_address_is_stored_and_shown_nowhere(
    tmp_path: Path, written: str, stored: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: '{written}'\n", encoding="utf-8")
    document = read(path)
    assert document.values["name"] == written
    assert document.public["name"] == stored
    assert redact(written) == stored
    if " " not in written:
        assert redact(f"cannot reach '{written}' (try again)") == f"cannot reach '{stored}' (try again)"


@pytest.mark.parametrize("text", NO_SECRET)
def test_what_is_no_secret_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f'name: "{text}"\n', encoding="utf-8")
    assert read(path).public["name"] == text
    assert redact(text) == text


def test_a_name_of_the_environment_may_be_stored_where_a_secret_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USER_NAME", "SHOP_PASSWORD"):
        monkeypatch.setenv(name, f"the-value-of-{name}")
    written = [
        "postgresql://${env:USER_NAME}:${env:SHOP_PASSWORD}@host/db",
        "postgresql://host/db?password=${env:SHOP_PASSWORD}",
        "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D${env:SHOP_PASSWORD}%3BServer%3Dhost",
    ]
    path = tmp_path / "recipe.yaml"
    for text in written:
        path.write_text(f"name: '{text}'\n", encoding="utf-8")
        assert read(path).public["name"] == text
    path.write_text("name: 'postgresql://me:salt${env:SHOP_PASSWORD}@host/db'\n", encoding="utf-8")
    assert read(path).public["name"] == "postgresql://me:${env:SHOP_PASSWORD}@host/db"


@pytest.mark.parametrize("secret", ["ab\\cd'e", 'it\'s "both"', "line\nbreak", "größe/ß", "a b&c=d/e"])
def test_a_secret_is_masked_however_it_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("QUOTED_SECRET", secret)
    path = tmp_path / "recipe.yaml"
    path.write_text("size: '${env:QUOTED_SECRET}'\n", encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        read(path).validate(Typed)
    assert raised.value.problems == [
        "recipe.yaml:1 size: input should be a valid integer, unable to parse string as an integer, not '***'"
    ]
    path.write_text("size: {a: ['x${env:QUOTED_SECRET}\"']}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        read(path).validate(Typed)
    assert raised.value.problems == ["recipe.yaml:1 size: input should be a valid integer, not {'a': ['x***\"']}"]
    forms = [repr(secret), repr(f'"{secret}'), repr(f"'\"{secret}"), ascii(secret), json.dumps(secret)]
    forms += [json.dumps(secret, ensure_ascii=False), quote(secret), quote(secret, safe=""), quote_plus(secret)]
    forms += [shlex.quote(secret), repr(repr(secret)), quote(secret, safe="").lower()]
    for form in forms:
        told = redact(f"it is {form}.")
        assert "***" in told, form
        for part in ("ab", "both", "break", "c=d", "e"):
            assert part not in told.replace("***", ""), form
