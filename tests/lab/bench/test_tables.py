"""Test benchmarks/tables.py: from records to the tables of the documents."""

import json

import pytest
from tests.lab.bench.conftest import ROOT, script

from torchadder.lab.reproduce import EXPERIMENTS
from torchadder.lab.reproduce.runs import read_records
from torchadder.lab.reproduce.table import document

NAMES = ("layers", "train", "mnist", "claims")
MARKERS = "".join(f"Before {name}.\n\n<!-- table: {name} -->\n<!-- /table -->\n\n" for name in NAMES)
ENVIRONMENT = {
    **{"processor": "Abacus 3000", "cores": 2, "torch": "2.13.0", "torchadder": "0.1.0", "kernels": "avx2"},
    "limits": {},
}
AVX2 = {
    **{"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    **{"ONEDNN_MAX_CPU_ISA": "AVX2", "TORCHADDER_ISA": "avx2"},
}


def layer(name, batch, threads, adder, conv, which="forward"):
    row = {"layer": name, "batch": batch, "threads": threads, "pass": which}
    return {**row, "adder_ms": adder, "conv_ms": conv, "ratio": adder / conv}


LAYERS = {
    **{"benchmark": "layers", "date": "2020-06-14", "environment": ENVIRONMENT, "n": 11},
    "rows": [
        layer("16->16 3x3 @32", 128, 1, 12.34, 10.0),
        layer("16->16 3x3 @32", 128, 2, 6.0, 8.0),
        layer("16->16 3x3 @32", 128, 1, 50.0, 20.0, "grad_input"),
        layer("16->16 3x3 @32", 1, 1, 0.1234, 0.2),
        layer("16->16 3x3 @32", 1, 2, 0.5, 0.25),
        layer("16->16 3x3 @32", 1, 1, 9.0, 9.0, "grad_input"),
        layer("16->32 1x1/2 @32", 1, 2, 1234.5, 1000.0),
    ],
    "formulas": [
        {
            **{"layer": "16->16 3x3 @32", "batch": 128, "threads": 1},
            "speedup": {"broadcast": 123.4, "cdist": 17.6},
        }
    ],
}
LAYERS_TABLE = """\
Abacus 3000, 2 cores; torch 2.13.0, avx2 kernels; medians of 11 repetitions; ratio is adder / conv, each in its better \
memory format; 2020-06-14.

Forward:

| layer | batch | 1 thread: adder ms | conv ms | ratio | 2 threads: adder ms | conv ms | ratio |
| :-- | --: | --: | --: | --: | --: | --: | --: |
| 16->16 3x3 @32 | 1 | 0.123 | 0.200 | 0.62 | 0.500 | 0.250 | 2.00 |
| 16->32 1x1/2 @32 | 1 | – | – | – | 1234 | 1000 | 1.23 |
| 16->16 3x3 @32 | 128 | 12.3 | 10.0 | 1.23 | 6.00 | 8.00 | 0.75 |

Gradient of the input, batch 128:

| layer | batch | 1 thread: adder ms | conv ms | ratio |
| :-- | --: | --: | --: | --: |
| 16->16 3x3 @32 | 128 | 50.0 | 20.0 | 2.50 |

123 times faster than the broadcast formula, 18 times faster than `torch.cdist` (batch 128, layer 16->16 3x3 @32, \
1 thread)."""

MEMORY = {"adder": {"total": 550.0}, "conv": {"total": 500.0}}
TRAIN = {
    **{"benchmark": "train", "date": "2020-06-14", "environment": ENVIRONMENT, "n": 5},
    "rows": [
        {
            **{"model": "resnet20", "batch": 128, "threads": 2, "adder_ms": 1234.5, "conv_ms": 1000.0},
            **{"ratio": 1.2345, "memory_ratio": 0.98, "profile": {"adder": {}, "conv": {}}, "memory_mib": MEMORY},
        },
        {
            **{"model": "lenet5bn", "batch": 2, "threads": 1, "adder_ms": 1.0, "conv_ms": 2.0},
            **{"ratio": 0.5, "memory_ratio": None, "profile": {"adder": {}, "conv": {}}, "memory_mib": MEMORY},
        },
    ],
}
TRAIN_TABLE = """\
Abacus 3000, 2 cores; torch 2.13.0, avx2 kernels; medians of 5 repetitions; ratios are adder / CNN, each in its better \
memory format; memory is the peak of what a step needs, process that of the whole process with malloc's leftovers; \
2020-06-14.

| model | batch | threads | adder ms/step | CNN ms/step | ratio | memory ratio | process ratio |
| :-- | --: | --: | --: | --: | --: | --: | --: |
| resnet20 | 128 | 2 | 1234 | 1000 | 1.23 | 0.98 | 1.10 |
| lenet5bn | 2 | 1 | 1.00 | 2.00 | 0.50 | – | 1.10 |"""

IN_INTEGERS = {**TRAIN, "rows": [{**row, "int8_ms": 900.0, "int8_ratio": 0.9} for row in TRAIN["rows"][:1]]}
IN_INTEGERS_ROWS = """\
| model | batch | threads | adder ms/step | int8 ms/step | CNN ms/step | ratio | int8 ratio | memory ratio \
| process ratio |
| :-- | --: | --: | --: | --: | --: | --: | --: | --: | --: |
| resnet20 | 128 | 2 | 1234 | 900 | 1000 | 1.23 | 0.90 | 0.98 | 1.10 |"""


RECIPE = {"name": "lenet5bn-mnist", "model": "lenet5bn", "dataset": "mnist", "epochs": 50, "eta": 0.1}


def runs(op, mean, **changes):
    numbers = {"mean": mean, "std": 0.0213, "n": 3, "seeds": [0, 1, 2], "epochs": 50, "threads": [1, 2]}
    cost = {"minutes": 5.55, "seconds_per_epoch": 6.66, "images_per_second": 9009.0, "peak_rss_mib": 612.0}
    recipe = {**RECIPE, "lr_scheme": "alr", "weight_grad": "full", "input_grad": "hardtanh", "op": op, **changes}
    return {**numbers, **cost, "recipe": recipe}


MNIST = {
    **{"benchmark": "runs", "date": "2020-06-14", "differing": ["threads"]},
    "environment": {name: ENVIRONMENT[name] for name in ("processor", "torch", "kernels")},
    "rows": [runs("conv", 99.47), runs("adder", 99.414), runs("adder", 99.0, recenter=True)],
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(f"# Title\n\n{MARKERS}The end.\n")
    return tmp_path


def put(root, name, record):
    (root / "results" / name).write_text(json.dumps(record))


def body(text, name):
    """Return the text between the markers of a table."""
    return text.split(f"<!-- table: {name} -->\n")[1].split("<!-- /table -->")[0].strip()


def test_a_training_step_in_integers(tables):
    caption, _, rows = tables.train_table(IN_INTEGERS).partition("\n\n")
    assert rows == IN_INTEGERS_ROWS
    assert "int8 is the AdderNet trained in integers; ratios are adder / CNN" in caption


def test_every_table(tables, root):
    put(root, "bench-layers.json", LAYERS)
    put(root, "bench-train.json", TRAIN)
    put(root, "mnist-lenet5bn.json", MNIST)
    assert tables.main([], root) == 0
    text = (root / "README.md").read_text()
    mnist = document(EXPERIMENTS["mnist"], read_records(root / "results"))
    for name, expected in zip(NAMES, (LAYERS_TABLE, TRAIN_TABLE, mnist, "Not measured yet."), strict=True):
        assert body(text, name) == expected
        assert f"Before {name}.\n\n<!-- table: {name} -->\n\n" in text
    assert text.startswith("# Title\n\n")
    assert text.endswith("\n\n<!-- /table -->\n\nThe end.\n")


def test_check_notices_a_stale_file_and_changes_nothing(tables, root, capsys):
    before = (root / "README.md").read_text()
    assert tables.main(["--check"], root) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "out of date: README.md; run python benchmarks/tables.py\n")
    assert (root / "README.md").read_text() == before
    assert tables.main([], root) == 0
    assert tables.main(["--check"], root) == 0
    put(root, "bench-train.json", TRAIN)
    assert tables.main(["--check"], root) == 1


def test_every_page_of_docs_is_rebuilt_once(tables, root, capsys):
    put(root, "bench-train.json", TRAIN)
    (root / "docs").mkdir()
    page = root / "docs" / "a.md"
    page.write_text("<!-- table: train -->\nold\n<!-- /table -->\n")
    assert tables.main([], root) == 0
    once = page.read_text()
    assert body(once, "train") == TRAIN_TABLE
    capsys.readouterr()
    assert tables.main([], root) == 0
    assert capsys.readouterr().out == "up to date\n"
    assert page.read_text() == once


def test_runs_of_no_table_of_the_paper_are_listed(tables, root):
    assert tables.table("other-runs", root / "results") == "Not measured yet."
    put(root, "mnist-lenet5bn.json", MNIST)
    (line,) = tables.table("other-runs", root / "results").splitlines()[2:]
    assert line.startswith("| lenet5bn-mnist, adder, recenter True | `mnist-lenet5bn.json` | 99.00 ± 0.02 | 3 | 50 |")


@pytest.mark.parametrize(("name", "record"), [("layers", LAYERS), ("train", TRAIN)])
def test_a_record_limited_to_avx2_says_so(tables, root, name, record):
    put(root, f"bench-{name}.json", record)
    put(root, f"bench-{name}-avx2.json", {**record, "environment": {**ENVIRONMENT, "limits": AVX2}})
    assert "limited" not in tables.table(name, root / "results")
    assert "; **torch and torchadder both limited to AVX2**; " in tables.table(f"{name}-avx2", root / "results")


def test_a_limit_on_one_side_only_is_named(tables):
    assert tables._limits({"TORCHADDER_ISA": "avx2"}) == "with `TORCHADDER_ISA=avx2`"
    mixed = {**AVX2, "TORCHADDER_ISA": "reference"}
    assert "both" not in tables._limits(mixed)


REFUSED = [  # README -> the words of the one line
    (MARKERS + "<!-- table: lairs -->\n<!-- /table -->\n", "table=lairs is unknown: expected one of layers"),
    (MARKERS.replace("<!-- /table -->", "", 1), "has no <!-- /table -->"),
    (MARKERS + "<!-- table: train -->\n", "has no <!-- /table -->"),
    (MARKERS + "<!-- table: train --> <!-- /table -->\n", "its marker is not"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_a_document_that_is_wrong_is_refused(tables, root, capsys, text, words):
    (root / "README.md").write_text(text)
    assert tables.main([], root) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: README.md: ")
    assert err.count("\n") == 1
    assert words in err
    assert (root / "README.md").read_text() == text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, content) for name in ("layers", "train") for content in ("{", "[]", "{}", '{"rows": [{}]}')),
        *(("mnist", content) for content in ("{", "[]", '{"benchmark": "runs"}')),
    ],
)
def test_a_damaged_record_is_refused(tables, root, capsys, name, content):
    file = "mnist-lenet5bn.json" if name == "mnist" else f"bench-{name}.json"
    (root / "results" / file).write_text(content)
    assert tables.main([], root) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {file} is not a record")
    assert err.count("\n") == 1


def test_a_missing_readme_is_one_line(tables, tmp_path, capsys):
    assert tables.main([], tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_documents_of_this_repository_are_well_formed(tables):
    tables.stale(ROOT)  # raises for an unknown or unclosed table and for a damaged record


@pytest.mark.parametrize("name", script("tables").KNOWN)
def test_every_table_can_be_made_of_results(tables, name):
    assert tables.table(name, ROOT / "results")


LIMITS = {
    **{"benchmark": "limits", "date": "2020-06-14", "environment": ENVIRONMENT, "n": 15},
    "rows": [
        {"isa": "avx512", "loop": "forward:add", "giga_ops": 50.0},
        {"isa": "avx2", "loop": "forward:add", "giga_ops": 20.0},
        {"isa": "avx2", "loop": "forward:fma", "giga_ops": 10.0},
    ],
}


def test_family_by_threads(tables):
    def row(threads, which, ratio):
        about = {"layer": "tiny: 8->8 3x3 on 1x8x4x4", "threads": threads, "pass": which}
        return {**about, "adder_ms": ratio, "conv_ms": 1.0, "ratio": ratio}

    rows = [row(1, "forward", 1.5), row(1, "step", 1.25), row(2, "forward", 2.0), row(2, "step", 0.5)]
    record = {"date": "2020-06-14", "environment": ENVIRONMENT, "n": 15, "rows": rows}
    assert tables.family_table(record).endswith(
        "| tiny: 8->8 3x3 on 1x8x4x4 | 1.50 | 1.00 | 1.50 | 1.25 | 2.00 | 1.00 | 2.00 | 0.50 |"
    )


def test_limits_by_instruction_set(tables):
    assert tables.limits_table(LIMITS).endswith("""
| inner loop | avx512 | avx2 |
| :-- | --: | --: |
| forward:add | 50.0 | 20.0 |
| forward:fma | – | 10.0 |""")


def test_distance_counts_the_taps_inside_and_takes_the_best_loop(tables):
    shape = {"size": 8, "kernel": 3, "stride": 1, "padding": 1}
    rates = {"adder_giga_ops": 16.0, "conv_giga_ops": 30.0}
    rows = [
        {**layer("a", 128, 1, 1.0, 1.0), **shape, **rates},
        {**layer("a", 128, 2, 1.0, 1.0), **shape, **rates},  # another number of threads
        {**layer("a", 1, 1, 1.0, 1.0), **shape, **rates},  # another batch
        {**layer("a", 128, 1, 1.0, 1.0, "grad_input"), **shape, **rates},  # no limit measured
    ]
    inside = 16.0 * (22 / 24) ** 2
    lines = tables.distance_table({**LAYERS, "rows": rows}, LIMITS).splitlines()
    assert lines[0] == "avx2 kernels, batch 128:"
    at_the_limit = 30.0 * inside / 16.0 / 20.0
    assert lines[4:] == [
        f"| a | forward | {inside:.1f} | 20.0 | {100 * inside / 20:.0f}% | 1.00 | {at_the_limit:.2f} |"
    ]


def test_breakdown_sums_to_the_step(tables):
    profile = {
        "adder": {"aten::relu": 2.0, "torchadder::x": 5.04, "other": 1.0},
        "conv": {"aten::relu": 3.0, "other": 0.5},
    }
    record = {**TRAIN, "rows": [{"model": "m", "batch": 2, "threads": t, "profile": profile} for t in (1, 2)]}
    assert (
        tables.breakdown_table(record)
        == """\
| m, batch 2, 1 thread | AdderNet, ms | CNN, ms |
| :-- | --: | --: |
| `aten::relu` | 2.0 | 3.0 |
| `torchadder::x` | 5.0 | – |
| other | 1.0 | 0.5 |
| **step under the profiler** | 8.0 | 3.5 |"""
    )
