"""Test benchmarks/engine_tables.py: from the engine's records to tables."""

import pytest

ENVIRONMENT = {"processor": "Abacus 3000", "cores": 2, "torch": "2.13.0", "kernels": "avx2", "limits": {}}
HEAD = {"date": "2020-06-14", "environment": ENVIRONMENT, "n": 9}


def candidate(key, title, precision, milliseconds, batch=1, threads=1, n=9):
    own = 2.0 * batch
    about = {"model": "resnet20", "batch": batch, "threads": threads, "candidate": key, "title": title}
    versions = {"torch": "2.13.0", "onnx": "1.0"}
    return {
        **about,
        "precision": precision,
        "milliseconds": milliseconds,
        "ratio": milliseconds / own,
        "versions": versions,
        "n": n,
    }


ROWS = [
    candidate("adder_fp32", "AdderNet fp32", "fp32", 1.0),
    candidate("adder_u8", "AdderNet u8 (engine)", "u8", 2.0),
    candidate("xnor", "XNOR (engine)", "u8", 1.5),
    candidate("torch_fp32", "CNN, torch fp32", "fp32", 9.0),
    candidate("openvino_fp32", "CNN, OpenVINO fp32", "fp32", 5.0),
    candidate("openvino_int8", "CNN, OpenVINO int8", "int8", 1.0),
    candidate("openvino_bf16", "CNN, OpenVINO bf16", "bf16", 0.5),
    candidate("adder_u8", "AdderNet u8 (engine)", "u8", 128.0, batch=64, n=3),
    candidate("torch_fp32", "CNN, torch fp32", "fp32", 64.0, batch=64),
    candidate("torch_fp32", "CNN, torch fp32", "fp32", 0.001, threads=2),
]


def test_summary_names_the_best_cnns_on_one_thread(engine_tables):
    table = engine_tables.summary_table({**HEAD, "rows": ROWS}, {**HEAD, "rows": ROWS[:4], "cpu": "avx2 (rest hidden)"})
    assert "**above 1 the AdderNet is faster**; torch 2.13.0; 2020-06-14." in table
    assert table.splitlines()[:2] == [
        "- this CPU, as it is: the 8-bit AdderNet is 0.50 to 2.50 times as fast as the best CNN in float32, "
        "0.25 to 0.25 times as fast as the best CNN in 8 bits;",
        "- this CPU, avx2 (rest hidden): the 8-bit AdderNet is 4.50 to 4.50 times as fast as the best CNN in float32;",
    ]
    assert table.splitlines()[5:8] == [
        "| as it is | resnet20 | 1 | 2 | 2.50 (OpenVINO) | 0.25 (OpenVINO, bf16) | 0.75 |",
        "| as it is | resnet20 | 64 | 2 | 0.50 (torch) | – | – |",
        "| avx2 (rest hidden) | resnet20 | 1 | 2 | 4.50 (torch) | – | 0.75 |",
    ]


def test_claims_are_one_image_against_the_best_cnns(engine_tables):
    limited = {**HEAD, "rows": ROWS[:4], "cpu": "avx2 (rest hidden)"}
    other = {**HEAD, "rows": ROWS[:6], "environment": {**ENVIRONMENT, "processor": "Slide rule (wooden)"}}
    table = engine_tables.claims_table({**HEAD, "rows": ROWS}, limited, other)
    assert table.splitlines() == [
        "| network | best fp32 CNN | best int8 CNN | AVX2: best fp32 CNN | AVX2: best int8 CNN "
        "| Slide rule: best fp32 CNN | Slide rule: best int8 CNN |",
        "| :-- | --: | --: | --: | --: | --: | --: |",
        "| resnet20 | 2.50× | 0.25× | 4.50× | – | 2.50× | 0.50× |",
        "",
        "The speedup of the 8-bit AdderNet over the best CNN, one image on one thread: Abacus 3000, 2 cores, "
        "as it is and limited to AVX2; Slide rule (wooden), 2 cores.",
    ]


def test_latency_by_batch_and_threads(engine_tables):
    lines = engine_tables.latency_table({**HEAD, "rows": ROWS, "cpu": "avx2"}).splitlines()
    assert "**every runtime sees avx2**; medians of 9 and 3 repetitions;" in lines[0]
    assert lines[2].startswith("| resnet20 | batch 1, 1 thread: ms/image | × | batch 64, 1 thread: ms/image | × |")
    assert "| CNN, torch fp32 | 9 | 4.50 | 1 | 0.50 | 0.001 | 0.00 |" in lines
    assert "| XNOR (engine) | 1.5 | 0.75 | – | – | – | – |" in lines


LIMITS = {
    **HEAD,
    "rows": [
        {"isa": "avx2", "loop": "u8 adder", "tile": "issue", "giga_ops": 100.0},
        {"isa": "avx2", "loop": "u8 adder", "tile": "5x8", "giga_ops": 120.0},
        {"isa": "avx2", "loop": "u8 conv", "tile": "5x8", "giga_ops": 50.0},
        {"isa": "avx512", "loop": "u8 adder", "tile": "issue", "giga_ops": 200.0},
        {"isa": "avx512vnni", "loop": "u8 conv", "tile": "8x16", "giga_ops": 400.0},
    ],
}


def test_steps_that_are_alike_share_a_row(engine_tables):
    def step(title, kernel, microseconds, operations):
        return {"model": "m", "step": title, "kernel": kernel, "microseconds": microseconds, "operations": operations}

    rows = [
        step("input", "quantize", 1.0, 0),
        step("conv 3->8", "conv_u8_avx2_5x8", 2.0, 20_000),
        *(step("adder 8->8", "adder_u8_avx2_5x8", t, 80_000) for t in (0.5, 1.5)),
    ]
    table = engine_tables.steps_table({**HEAD, "rows": rows}, LIMITS)
    assert table.splitlines()[2].startswith("| m, 5 µs |")
    assert table.splitlines()[4:] == [
        "| input | 1× | `quantize` | 1.00 | – | – | 20.0% |",
        "| conv 3->8 | 1× | `conv_u8_avx2_5x8` | 2.00 | 10 | 20% | 40.0% |",
        "| adder 8->8 | 2× | `adder_u8_avx2_5x8` | 1.00 | 80 | 80% | 40.0% |",
    ]


@pytest.mark.parametrize(
    ("step", "kernel", "limit"),
    [
        ("adder 8->8", "adder_u8_avx2max_5x8", 100.0),
        ("adder 8->8", "adder_u8_avx512vnni_8x16", 200.0),
        ("conv 8->8", "conv_u8_avx512vnni_8x16", 400.0),
        ("binary 8->8", "binary_avx2_4x8", None),
        ("input", "quantize", None),
        ("adder 8->8", "adder_u8_reference_2x8", None),
    ],
)
def test_the_limit_of_a_kernel(engine_tables, step, kernel, limit):
    assert engine_tables._limit(step, kernel, LIMITS) == limit


def test_limits(engine_tables):
    assert "| avx512vnni | u8 conv | 8x16 | 400 |" in engine_tables.limits_u8_table(LIMITS)


def test_quantisation_by_model(engine_tables):
    def row(checkpoint, bits, accuracy, dataset="cifar10", epochs=0, **target):
        about = {"checkpoint": checkpoint, "op": "adder", "dataset": dataset, "method": "mse"}
        about |= {"finetune_epochs": epochs, **target}
        about |= {"calibration_images": 512, "images": 500, "float_accuracy": 92.2}
        return {**about, "bits": bits, "accuracy": accuracy}

    first = {**HEAD, "rows": [row("a.pth", 4, 91.0), row("a.pth", 8, 92.4)]}
    second = {**HEAD, "rows": [row("b", 8, 92.2), row("b", 4, 90.0)]}
    third = {**HEAD, "rows": [row("b", 8, 81.0, "mine"), row("b", 4, 80.0, "mine")]}
    tuned = row("b", 4, 90.2, "mine", 1, finetune_target="answers")
    third["rows"] += [tuned, {**tuned, "dataset": "cifar10", "trained_on": "mine", "accuracy": 91.8}]
    assert engine_tables.quantisation_table(first, second, third).splitlines()[2:] == [
        "| model | test images | float32, % | 8 bits | 4 bits |",
        "| :-- | --: | --: | --: | --: |",
        "| `a.pth` (adder, cifar10) | 500 | 92.20 | 92.40 (+0.20) | 91.00 (-1.20) |",
        "| `b` (adder, cifar10) | 500 | 92.20 | 92.20 (+0.00) | 90.00 (-2.20) |",
        "| `b` (adder, mine) | 500 | 92.20 | 81.00 (-11.20) | 80.00 (-12.20) |",
        "| `b` (adder, mine), fine-tuned to its answers, epochs: 1 | 500 | 92.20 | – | 90.20 (-2.00) |",
        "| `b` (adder, cifar10), fine-tuned to its answers, epochs: 1, on mine | 500 | 92.20 | – | 91.80 (-0.40) |",
    ]


def test_exported_networks(engine_tables):
    network = {"op": "adder", "bits": 8}
    equality = {**network, "what": "equality", "images": 100, "correct": 98}
    rows = [
        {**equality, "equal_classes": 100, "equal_logits": 100},
        {**equality, "equal_classes": 99, "equal_logits": 97},
        {**network, "what": "size", "core": "cortex-m0", "tables": 1, "code": 2, "arena": 3},
        {**network, "what": "size", "core": "cortex-m4", "tables": 4000, "code": 5, "arena": 6},
        {**network, "what": "loop", "core": "cortex-m0", "elements": 16, "instructions": 32},
        {**network, "what": "loop", "core": "cortex-m4", "elements": 16, "instructions": 32, "cycles": 8.0},
        {"op": "conv", "bits": 8, "what": "loop", "core": "cortex-m4", "elements": 4, "instructions": 3, "cycles": 3.0},
    ]
    record = {"rows": rows, "date": "2026-11-30", "versions": {"cc": "cc 12"}}
    cores = engine_tables.cores_table(record).splitlines()
    assert cores[2:4] == [
        "| cortex-m0 | instructions, counted | 2.00 | – |",
        "| cortex-m4 | cycles, modelled | 0.50 | 0.75 |",
    ]
    record["rows"] = [row for row in rows if row["op"] == "adder"]
    assert "| AdderNet, 8 bits | 4,000 | 5 | 6 | 97 of 100 | 98.00% |" in engine_tables.exports_table(record)


def test_cycles_on_riscv(engine_tables):
    rows = [
        {"core": "with multiplier", "op": op, "bits": 8, "cycles": cycles}
        for op, cycles in (("adder", 2_000_000), ("conv", 3_000_000))
    ]
    record = {"rows": rows, "date": "2026-11-30", "versions": {"verilator": "Verilator 5", "picorv32": "1.0"}}
    lines = engine_tables.riscv_table(record).splitlines()
    assert lines[2:4] == ["| AdderNet, 8 bits | 2.00 | 1.50 |", "| CNN, 8 bits | 3.00 | 1.00 |"]
    assert lines[-1] == "Measured in the simulated RTL of PicoRV32 1.0; Verilator 5; 2026-11-30."


def test_the_pico_networks(engine_tables):
    cores = ("cortex-m0", "cortex-m4", "rv32imc")
    sizes = [{"core": core, "code": 2000, "tables": 10_000, "arena": 900, "stack": 300} for core in cores]
    programs = [{"accuracy": accuracy, "images": 10_000} for accuracy in (99.0, 99.1)]
    cycles = {"with multiplier": 1_500_000, "without multiplier": 2_000_000}
    row = {"model": "pico", "bits": 4, "input": 1024, "programs": programs, "sizes": sizes, "cycles": cycles}
    record = {"rows": [row], "date": "2026-11-30", "versions": {"verilator": "Verilator 5", "picorv32": "1.0"}}
    ram = "1,024 + 900 + 300 = 2,224"
    expected = f"| `pico` | 99.00, 99.10 | 99.05% | 12,000 | 12,000 | 12,000 | {ram} | 1.50 | 2.00 |"
    assert engine_tables.pico_table(record).splitlines()[2] == expected


def test_resnet8(engine_tables):
    rows = [
        {
            "op": op,
            "bits": bits,
            "input": 3072,
            "programs": [{"accuracy": 80.0, "float_accuracy": 81.0, "images": 10_000}],
            "sizes": [{"core": "cortex-m4", "code": 2000, "tables": 80_000, "arena": 40_000}],
            "cycles": {"with multiplier": cycles * 1_000_000, "without multiplier": 2 * cycles * 1_000_000},
        }
        for op, bits, cycles in (("adder", 7, 100), ("conv", 8, 150))
    ]
    record = {"rows": rows, "date": "2026-11-30", "versions": {"verilator": "Verilator 5", "picorv32": "1.0"}}
    lines = engine_tables.resnet8_table(record).splitlines()
    sizes = "82,000 | 3,072 + 40,000"
    assert lines[2] == f"| AdderNet, 7 bits | 80.00% | 81.00% | {sizes} | 100.0 | 1.50 | 200.0 | 1.50 |"
    assert lines[3] == f"| CNN, 8 bits | 80.00% | 81.00% | {sizes} | 150.0 | 1.00 | 300.0 | 1.00 |"
