"""What a user gets who installs the package, or types the README's first command."""

import re
import subprocess
import sys
import zipfile

import zoo
from tests.conftest import ROOT
from zoo import demo


def test_the_wheel_has_the_package_the_recipes_and_the_command(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
    ]
    subprocess.run([*command, ROOT], check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("recurrent_zoo-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"zoo"}
    assert {"zoo/datamodules/tiny_shakespeare.txt", "zoo/py.typed"} <= names
    assert {name.split("/")[-1] for name in names if name.startswith("zoo/checkpoints/")} == {"config.yaml"}
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "recurrent-zoo = zoo.cli:main" in (tmp_path / "site" / entry_points).read_text()

    code = "from zoo.cli import main; main(['list'])"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "ZOO_CHECKPOINTS": str(ROOT / "checkpoints")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "zaremba-small-ptb" in done.stdout
    del environment["ZOO_CHECKPOINTS"]
    code = "import zoo; print(zoo.names() != [], zoo.names(pretrained=True), zoo.build('awd-lstm-ptb').vocab_size)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "True [] 10000\n"


def test_the_readmes_programs_pass_a_type_checker(tmp_path):
    programs = re.findall(r"```python\n(import .*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    files = [tmp_path / f"program_{number}.py" for number in range(len(programs))]
    for file, program in zip(files, programs, strict=True):
        file.write_text(program)
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import zoo\nzoo.load('zaremba-small-ptb', revison='v1')\n")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file",
        "",
        "--cache-dir",
        tmp_path / "cache",
        *files,
        wrong,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    errors = [line.split(":")[:2] for line in done.stdout.splitlines() if " error: " in line]
    assert errors == [["wrong.py", "2"]], done.stdout + done.stderr
    assert len(programs) > 3


def test_what_is_public_can_be_found():
    code = "import sys, zoo; print(zoo.optim.NTASGD.__name__, zoo.UserError.__name__, *dir(zoo))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    optimizer, error, *names = done.stdout.split()
    assert (optimizer, error) == ("NTASGD", "UserError")
    assert {"load", "LSTM", "Zoneout", "evaluation", "layers", "models", "optim", "__version__"} <= {*names}
    assert all(hasattr(zoo, name) for name in names)


def test_the_modules_that_recipes_name_are_found_without_an_import():
    recipes = "".join(file.read_text() for file in ROOT.glob("checkpoints/*/config.yaml"))
    modules = {*re.findall(r"class_path: zoo\.([a-z_]+)\.", recipes)}
    assert {"layers", "models", "optim", "regularisers"} <= modules
    code = f"import zoo; [getattr(zoo, name) for name in {sorted(modules)}]"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_demo_runs_and_learns_something(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shakespeare = tmp_path / "shakespeare.txt"
    shakespeare.write_text(demo.TINY_SHAKESPEARE.read_text()[:100_000])
    monkeypatch.setattr(demo, "TINY_SHAKESPEARE", shakespeare)
    demo.run(epochs=1)
    output = capsys.readouterr().out
    for part in ("zaremba-small-ptb", "airline", "the president of the company", "% of the words are <unk>"):
        assert part in output
    before, after = re.search(r"predictions of test: (\S+) before, (\S+) after", output).groups()
    assert float(after) < 0.8 * float(before)
    assert "shakespeare: my lord" in output
    assert {path.name for path in tmp_path.iterdir()} == {"shakespeare.txt", "logs"}
