"""Types of the compiled module.

Arrays cross as DLPack capsules named ``"dltensor"`` (``torch.utils.dlpack.to_dlpack(t)`` or ``array.__dlpack__()``);
the capsule is read, never consumed: its owner stays alive in the caller. Outputs are allocated by the caller and are
contiguous.

``blocks``: ``(capsule [R, C], row_offset, col_offset, symmetric)``. Entry (i, j) is the strength of the undirected edge
between vertex ``row_offset + i`` and vertex ``col_offset + j``; a pair that occurs in several blocks adds up. A
symmetric block is square, has equal offsets and holds each edge twice. Entries that join a vertex to itself are
ignored.
``csr``: ``(indptr int64 [n+1], indices int32|int64 [m], data float32|float64|int64 [m])``, symmetric, strictly
increasing columns in each row (so no duplicates). All capacities of one call are floats (32 and 64 may
mix), or all are int64.
"""

from typing import Any, TypedDict

Capsule = Any
Block = tuple[Capsule, int, int, bool]
Csr = tuple[Capsule, Capsule, Capsule]

class Info(TypedDict):
    version: str
    compiler: str
    build_type: str
    cuda_compiled: bool
    cuda_toolkit: str | None
    cuda_archs: str

class Device(TypedDict):
    name: str
    capability: str  # "9.0"
    memory_bytes: int

class Devices(TypedDict):
    status: str  # "ok" | "not_compiled" | "no_driver" | "driver_too_old" | "no_device" | "error"
    message: str
    devices: list[Device]

class Settings(TypedDict, total=False):
    certificates: bool  # gomory_hu: prove stars without flows where possible (default True)
    flows: bool  # gomory_hu: False leaves what no certificate proves as a leaf with lower bound 0 (default True)
    threads: int  # default 1; results do not depend on it
    seed: int  # accepted for symmetry; nothing in here is random
    eps: float  # gomory_hu, in [0, 1], default 0: every lower bound need only be weight / (1 + eps)
    reductions: bool  # gomory_hu: take bridges, blocks and chains out of sparse graphs first (default True)
    repairs: int  # gomory_hu: most edges to mend where rounding put a vertex on the wrong side (default 50)
    representation: str  # "auto" (default) | "block" | "csr": how capacities are held while flows run
    flow: str  # "auto" (default) | "augment" | "push_relabel"

class FlowResult(TypedDict):
    value: float | int  # capacity of the returned side, re-summed from the given weights; int for int64 capacities
    lower: float | int  # proven lower bound on the minimum cut (the value of a feasible flow)
    exact: bool  # value - lower <= 1e-12 * value (float64), 1e-6 * value (float32), == 0 (int64)
    pulses: int  # blocking phases (augment) or global relabellings (push_relabel)
    work: int  # arcs looked at
    representation: str  # "block" | "csr"
    flow: str  # "augment" | "push_relabel": what found the answer ("auto" changes over where augmenting is long)
    seconds: float

class GlobalResult(TypedDict):
    value: float | int  # as in FlowResult
    lower: float | int
    exact: bool
    rounds: int  # times the graph was shrunk
    work: int  # arcs looked at
    seconds: float

class TreeResult(TypedDict):
    flows: int  # max-flows run
    certified: int  # vertices whose cut was proven without a flow (certified_out != 0)
    passes: float  # arcs looked at / arcs of the graph, certificates included
    seconds: float
    seconds_certificates: float
    root: int
    exact: bool  # every edge is
    gap: float  # largest (weight - lower) / weight over the edges
    nontrivial: int  # cuts found that are not a single vertex
    nu: float  # proven lower bound on the second eigenvalue of the normalised Laplacian; 0 when none was proven
    nu_proof: str  # "none" | "frobenius" | "norms" | "cholesky": how it was proven (of the largest component)
    components: int
    representation: str  # "none" (no flow was needed) | "block" | "csr"
    fallbacks: int  # flows that "auto" handed from augment to push_relabel
    repairs: int  # edges that rounding had put on the wrong side
    reduced: int  # edges that follow from bridges, blocks and chains

class RecertifyResult(TypedDict):
    made: bool  # False: CSR or integers, no capacities, strengths far from the guess, or too much is left to flows
    star: bool  # every edge leads to the root
    by: dict[int, int]  # vertices by the code of their proof
    flows: int  # as in TreeResult, as is the rest
    certified: int
    root: int
    exact: bool
    gap: float
    nontrivial: int
    components: int
    nu: float
    nu_proof: str  # as in TreeResult, or "carried": from the anchor's
    passes: float
    seconds: float

def info() -> Info: ...
def devices() -> Devices: ...
def max_flow(
    n: int,
    blocks: list[Block],
    csr: Csr | None,
    s: int,
    t: int,
    side_out: Capsule,  # bool or uint8 [n]: 1 on the source side
    settings: Settings,
) -> FlowResult: ...
def gomory_hu(
    n: int,
    blocks: list[Block],
    csr: Csr | None,
    parent_out: Capsule,  # int64 [n]: -1 at the root
    weight_out: Capsule,  # float64 [n]: inf at the root
    lower_out: Capsule,  # float64 [n]: inf at the root
    certified_out: Capsule,  # uint8 [n]: 0 by flow (and the root), else how: CERTIFICATES in tree.py
    settings: Settings,
) -> TreeResult: ...
def recertify(
    n: int,
    blocks: list[Block],
    guess: Capsule,  # float64 [n]: strengths as they may be; inf: the largest of the others
    anchor: tuple[list[Block], Capsule, float] | None,  # earlier blocks of this graph, their strengths [n], proven nu
    magnitude: bool,  # entries are signed and stand for their absolute values
    parent_out: Capsule,  # as for gomory_hu; written where a tree is made
    weight_out: Capsule,
    lower_out: Capsule,
    certified_out: Capsule,
    settings: Settings,
) -> RecertifyResult: ...
def global_cut(
    n: int,  # at least 2
    blocks: list[Block],
    csr: Csr | None,
    side_out: Capsule,  # bool or uint8 [n]: 1 on one side
    settings: Settings,
) -> GlobalResult: ...
def settle_tree(
    n: int,
    blocks: list[Block],
    csr: Csr | None,
    parent: Capsule,  # a tree as gomory_hu returns it, corrected in place: every weight becomes the cut that it induces
    weight: Capsule,
    lower: Capsule,
    certified: Capsule,
    settings: Settings,
) -> float: ...  # the largest (weight - lower) / weight
def cut_values(
    n: int,
    blocks: list[Block],
    csr: Csr | None,
    labels: Capsule,  # int64 [n], 0 <= label < k
    out: Capsule,  # float64 [k]: capacity between the vertices of a label and all others, compensated
    settings: Settings,
) -> None: ...
def degree_cpu(
    n: int,
    blocks: list[Block],
    csr: Csr | None,
    out: Capsule,  # float64 [n]: strengths, compensated sums
    settings: Settings,
) -> None: ...
def degree_cuda(
    block: Capsule,  # float32|float64 [R, C] on a CUDA device; signed weights, |w| is summed
    row_out: Capsule,  # float64 [R] on the same device
    col_out: Capsule,  # float64 [C] on the same device
    stream: int,
) -> None: ...
def gomory_hu_batch_cpu(
    weights: Capsule,  # [b, n, n] float32|float64|int32|int64, rows contiguous, symmetric; n <= 4096
    parent_out: Capsule,  # int64 [b, n]; -1 at the root
    weight_out: Capsule,  # float64 [b, n]; the induced cut of each edge, inf at the root
    lower_out: Capsule,  # float64 [b, n]; the value of a feasible flow
    status_out: Capsule,  # int64 [b, 4]: code (csrc/core/small_tree.hpp), row, column, pulses of all flows
    threads: int,
) -> None: ...
def gomory_hu_batch_plan(weights: Capsule) -> dict[str, int | bool]: ...  # "workspace": bytes to lend
def gomory_hu_batch_cuda(
    weights: Capsule,  # as on the CPU, and all others on the same device
    parent_out: Capsule,
    weight_out: Capsule,
    lower_out: Capsule,
    status_out: Capsule,
    workspace: Capsule,  # uint8, at least the plan's bytes
    stream: int,
) -> None: ...
def share_pass(
    weights: list[Capsule],  # [R, C * taps] float32|float64|bfloat16, one dtype; rows or columns contiguous
    grads: list[Capsule | None],  # empty, or of the weights' shapes and strides; written (or added to)
    taps: list[int],  # consecutive columns of each weight that share a scale and a label
    scales: Capsule,  # [sum C] float64 for float64 weights, else float32
    row_labels: Capsule,  # uint8 [sum R]: below k, 255 outside the graph
    col_labels: Capsule,  # uint8 [sum C]
    row_weights: Capsule,  # [sum R] as scales: how much each row's leak counts
    leak_out: Capsule,  # [sum R] as scales
    strength_out: Capsule,  # [sum R] as scales
    k: int,
    accumulate: bool,  # add to grads instead of writing them
    threads: int,
) -> float: ...  # sum of row_weights * leak
def share_shrink(
    weights: list[Capsule],  # as above; changed in place
    taps: list[int],
    scales: Capsule,
    row_labels: Capsule,
    col_labels: Capsule,
    row_steps: Capsule,  # [sum R]: W <- sign(W) max(|W| - row_step * scale / strength, 0) where labels differ
    k: int,
    threads: int,
) -> None: ...
