"""benchmarks/tables.py: from records to the tables of the documents."""

import json
from pathlib import Path

import pytest

NAMES = ("layers", "train", "mnist")
PERFORMANCE = (
    *("limits", "distance", "layers", "layers-avx2", "train", "train-avx2", "breakdown"),
    *("family", "mnist-bf16"),
)
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


def runs(op, mean, std, n, lr_scheme=None, eta=None, grad=None, threads=(1,)):
    scheme = {"op": op, "lr_scheme": lr_scheme, "eta": eta, "grad": grad}
    return {**scheme, "mean": mean, "std": std, "n": n, "epochs": 50, "minutes": 5.55, "threads": list(threads)}


MNIST = {
    **{"benchmark": "runs", "date": "2020-06-14", "differing": ["threads"]},
    "environment": {name: ENVIRONMENT[name] for name in ("processor", "torch", "kernels")},
    "rows": [
        runs("adder", 99.414, 0.0213, 3, "alr", 0.2, "full", threads=(1, 2)),
        runs("conv", 99.47, None, 1),
        runs("adder", 97.7, 0.1, 3, "ilr", None, "sign"),
        runs("adder", 90.0, 0.1, 3, "plain", None, "weight sign, input full"),
    ],
}
MNIST_TABLE = """\
Abacus 3000; torch 2.13.0, avx2 kernels; accuracy of the final epoch, mean ± sample standard deviation; the runs \
differ in threads, which the file lists run by run; 2020-06-14.

| network | test accuracy, % | paper, % | epochs | minutes a run | threads |
| :-- | --: | --: | --: | --: | --: |
| AdderNet, ALR η=0.2 | 99.41 ± 0.02 (3 seeds) | 99.40 | 50 | 5.5 | 1, 2 |
| CNN | 99.47 (1 seed) | 99.40 | 50 | 5.5 | 1 |
| AdderNet, ILR, gradient: sign | 97.70 ± 0.10 (3 seeds) | 97.72 | 50 | 5.5 | 1 |
| AdderNet, plain rate, gradient: weight sign, input full | 90.00 ± 0.10 (3 seeds) | – | 50 | 5.5 | 1 |"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(f"# Title\n\n{MARKERS}The end.\n")
    return tmp_path


def put(root, name, record):
    (root / "results" / name).write_text(json.dumps(record))


def body(text, name):
    """What stands between the markers of a table."""
    return text.split(f"<!-- table: {name} -->\n")[1].split("<!-- /table -->")[0].strip()


def test_every_table(tables, root):
    put(root, "bench-layers.json", LAYERS)
    put(root, "bench-train.json", TRAIN)
    put(root, "mnist-lenet5bn.json", MNIST)
    assert tables.main([], root) == 0
    text = (root / "README.md").read_text()
    for name, expected in zip(NAMES, (LAYERS_TABLE, TRAIN_TABLE, MNIST_TABLE), strict=True):
        assert body(text, name) == expected
        assert f"Before {name}.\n\n<!-- table: {name} -->\n\n" in text
    assert text.startswith("# Title\n\n")
    assert text.endswith("\n\n<!-- /table -->\n\nThe end.\n")


def test_missing_results_are_said(tables, root):
    put(root, "bench-train.json", TRAIN)
    assert tables.main([], root) == 0
    text = (root / "README.md").read_text()
    assert [body(text, name) for name in NAMES] == ["Not measured yet.", TRAIN_TABLE, "Not measured yet."]


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


def test_rebuilding_twice_changes_nothing(tables, root, capsys):
    put(root, "bench-layers.json", LAYERS)
    assert tables.main([], root) == 0
    once = (root / "README.md").read_text()
    capsys.readouterr()
    assert tables.main([], root) == 0
    assert capsys.readouterr().out == "up to date\n"
    assert (root / "README.md").read_text() == once


def test_other_documents_may_hold_any_of_the_tables(tables, root, capsys):
    put(root, "bench-train.json", TRAIN)
    (root / "docs").mkdir()
    document = root / "docs" / "performance.md"
    document.write_text("".join(f"<!-- table: {name} -->\nold\n<!-- /table -->\n" for name in PERFORMANCE))
    assert tables.main([], root) == 0
    assert body(document.read_text(), "train") == TRAIN_TABLE
    document.write_text("no table\n")
    assert tables.main([], root) == 2
    assert "docs/performance.md: <!-- table: limits --> is missing" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "record"), [("layers", LAYERS), ("train", TRAIN)])
def test_the_record_held_to_avx2_says_so(tables, root, name, record):
    put(root, f"bench-{name}.json", record)
    put(root, f"bench-{name}-avx2.json", {**record, "environment": {**ENVIRONMENT, "limits": AVX2}})
    assert "held" not in tables.table(name, root / "results")
    assert "; **torch and torchadder both held to AVX2**; " in tables.table(f"{name}-avx2", root / "results")


def test_a_limit_on_one_side_only_is_named(tables):
    assert tables._limits({"TORCHADDER_ISA": "avx2"}) == "with `TORCHADDER_ISA=avx2`"
    mixed = {**AVX2, "TORCHADDER_ISA": "reference"}
    assert "both" not in tables._limits(mixed)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.012"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_digits(tables, value, text):
    assert tables._digits(value) == text


REFUSED = [  # README -> the words of the one line
    (MARKERS.replace("<!-- table: mnist -->", ""), "<!-- table: mnist --> is missing"),
    (MARKERS + "<!-- table: lairs -->\n<!-- /table -->\n", "unknown table 'lairs'; known: layers, layers-avx2, train"),
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


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"rows": [{}]}'])
def test_a_damaged_record_is_refused(tables, root, capsys, content):
    for name in ("bench-layers", "bench-train", "mnist-lenet5bn"):
        path = root / "results" / f"{name}.json"
        path.write_text(content)
        assert tables.main([], root) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {name}.json is no record of ")
        assert err.count("\n") == 1
        path.unlink()


def test_a_missing_readme_is_one_line(tables, tmp_path, capsys):
    assert tables.main([], tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_documents_of_this_repository_are_well_formed(tables):
    root = Path(__file__).parents[2]
    tables.stale(root)  # every marker present, known and closed; every record readable
    assert all(f"<!-- table: {name} -->" in (root / "README.md").read_text(encoding="utf-8") for name in NAMES)


def test_networks_by_operator_and_precision(tables):
    assert tables._network({"op": "binary"}) == "BNN"
    assert tables._network({"op": "conv"}) == "CNN"
    row = {"op": "adder", "lr_scheme": "plain", "grad": "full", "eta": None}
    row["recipe"] = {"recenter": True, "precision": "bf16"}
    assert tables._network(row) == "AdderNet, plain rate, recentred, bfloat16 between layers"


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


def test_breakdown_puts_both_sides_in_one_row(tables):
    profile = {"adder": {"aten::relu": 2.0, "torchadder::x": 5.04}, "conv": {"aten::relu": 3.0}}
    record = {**TRAIN, "rows": [{"model": "m", "batch": 2, "threads": t, "profile": profile} for t in (1, 2)]}
    assert (
        tables.breakdown_table(record)
        == """\
| m, batch 2, 1 thread | AdderNet, ms | CNN, ms |
| :-- | --: | --: |
| `aten::relu` | 2.0 | 3.0 |
| `torchadder::x` | 5.0 | – |"""
    )
