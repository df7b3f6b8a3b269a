"""Test benchmarks/microcontrollers.py: the stack of a call, from the graph that GCC writes."""

from tests.lab.bench.conftest import script

GRAPH = """graph: { title: "net.c"
node: { title: "net.c:run_layer" label: "run_layer\\nnet.c:2:1\\n144 bytes (static)" }
node: { title: "__indirect_call" label: "Indirect Call Placeholder" shape : ellipse }
edge: { sourcename: "net.c:run_layer" targetname: "__indirect_call" label: "net.c:3:1" }
node: { title: "net.c:adder_tile" label: "adder_tile\\nnet.c:4:1\\n104 bytes (static)" }
node: { title: "net.c:adder_patch" label: "adder_patch\\nnet.c:5:1\\n60 bytes (static)" }
node: { title: "net.c:copy" label: "copy\\nnet.c:6:1\\n48 bytes (static)" }
edge: { sourcename: "net.c:adder_patch" targetname: "net.c:copy" label: "net.c:7:1" }
node: { title: "memcpy" label: "__builtin_memcpy\\n<built-in>" shape : ellipse }
edge: { sourcename: "net.c:copy" targetname: "memcpy" }
node: { title: "net_run" label: "net_run\\nnet.c:8:1\\n96 bytes (static)" }
edge: { sourcename: "net_run" targetname: "net.c:run_layer" label: "net.c:9:1" }
node: { title: "net_other" label: "net_other\\nnet.c:10:1\\n900 bytes (static)" }
}
"""


def test_the_stack_of_a_call():
    """The deepest chain counts: that of the patch and its copy is above that of the tile."""
    assert script("microcontrollers").stack(GRAPH, "net_run") == 96 + 144 + 60 + 48
