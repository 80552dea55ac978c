"""What the machine has: device, type of computation, memory, cores, compiler, matrix rate."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.cores import cgroup_folders, read_text, usable_cores
from cygnet.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BF16_PAYS = 1.3
"""How much faster than float32 bfloat16 products must be, where no flag of the processor tells."""
RATE_SIZE = {"cpu": 2048, "cuda": 8192}
RATE_SECONDS = 0.3


@dataclass(frozen=True)
class Memory:
    """Bytes that this process may still take, and what sets that limit."""

    free_bytes: int
    limited_by: str


@dataclass(frozen=True)
class Hardware:
    """A machine as the engine and the planner see it.

    Attributes:
        device: where the model lives.
        name: the processor or GPU, for people.
        dtype: the type of the computation; dtype_reason says why.
        memory: what the device has left; on the CPU that is the process's own allowance.
        num_cores: cores that this process may use, at least one.
    """

    device: torch.device
    name: str
    dtype: torch.dtype
    dtype_reason: str
    memory: Memory
    num_cores: int

    @property
    def dtype_name(self) -> str:
        """`bf16`, `fp16` or `fp32`."""
        return next(name for name, dtype in DTYPES.items() if dtype is self.dtype)

    @cached_property
    def matrix_rate(self) -> float:
        """Floating-point operations a second of a large product in `dtype`, measured once."""
        return matrix_flops_per_second(self.dtype, self.device)

    def compile_problem(self) -> str | None:
        """Say in one line what keeps torch.compile from working here, or return None."""
        return compile_problem(self.device)

    @property
    def num_places(self) -> int:
        """Return how many processes the machine has a core, or a GPU, for."""
        return torch.cuda.device_count() if self.device.type == "cuda" else self.num_cores

    def shared_by(self, count: int) -> Hardware:
        """Return the machine as one of `count` processes may use it; each has a GPU of its own."""
        if count == 1 or self.device.type != "cpu":
            return self
        limit = f"{self.memory.limited_by}, shared by {count} processes"
        memory = Memory(self.memory.free_bytes // count, limit)
        cores = max(self.num_cores // count, 1)
        return dataclasses.replace(self, memory=memory, num_cores=cores)


def find_hardware(config: TrainConfig) -> Hardware:
    """Look at the machine, as far as `config.device` and `config.dtype` leave it open.

    Raises:
        UserError: a device or type that is not there.
    """
    device = choose_device(config.device)
    dtype, reason = resolve_dtype(config.dtype, device)
    return Hardware(
        device=device,
        name=device_name(device),
        dtype=dtype,
        dtype_reason=reason,
        memory=usable_memory(device),
        num_cores=usable_cores(),
    )


def choose_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the first GPU, or else the CPU.

    Raises:
        UserError: torch does not know it, or this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r}: not one of auto, cpu, cuda, cuda:0, ...") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise UserError(f"device {name!r}: Cygnet trains on cpu and cuda; take one, or auto")
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        found = f"{count} GPU{'s' if count > 1 else ''}" if count else "no GPU"
        raise UserError(f"device {name!r}: torch finds {found} here; give --device auto")
    return torch.device("cuda", device.index or 0)


def generator_state(device: torch.device) -> list[int] | None:
    """Return the state of torch's generator on a GPU, from which dropout there draws.

    None of the CPU, whose generator is in every checkpoint.
    """
    return torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None


def set_generator_state(device: torch.device, state: list[int] | None) -> None:
    """Take what `generator_state` gave, where that was on a GPU and this is one."""
    if device.type == "cuda" and state is not None:
        torch.cuda.set_rng_state(torch.tensor(state, dtype=torch.uint8), device)


def device_name(device: torch.device) -> str:
    """Return the maker's name of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    return str(name).strip()


def resolve_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Choose the type of the computation and say why.

    `auto` is bf16 where the hardware has bf16 matrix instructions (x86: AMX or AVX-512 BF16;
    CUDA: compute capability 8 or more; other processors: where a product is measured to be
    faster), fp16 on older GPUs, fp32 else. Weights and optimizer stay float32 in any case.
    """
    if name != "auto":
        return DTYPES[name], "as asked for"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        reason = f"compute capability {major}.{minor}"
        return (torch.bfloat16 if major >= 8 else torch.float16), reason
    found = torch.cpu.get_capabilities()
    if found.get("architecture") in ("x86_64", "amd64"):
        for flag, label in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 BF16")):
            if found.get(flag):
                return torch.bfloat16, f"the processor has {label}"
        return torch.float32, "the processor has no bf16 matrix instructions"
    ratio = matrix_flops_per_second(torch.bfloat16, device, 0.1) / matrix_flops_per_second(
        torch.float32, device, 0.1
    )
    reason = f"bf16 products measured at {ratio:.1f} x the rate of fp32"
    return (torch.bfloat16 if ratio >= BF16_PAYS else torch.float32), reason


def matrix_flops_per_second(
    dtype: torch.dtype, device: torch.device, seconds: float = RATE_SECONDS
) -> float:
    """Measure the rate of a large `torch.mm`, the median of repeats over about `seconds`.

    The size grows until one product fills a good part of that time, or is as large as pays.
    """
    generator = torch.Generator(device).manual_seed(0)

    def once(a: Tensor, b: Tensor, out: Tensor) -> float:
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    size = 256
    while True:
        shape = (2, size, size)
        a, b = torch.randn(shape, generator=generator, device=device).to(dtype)
        out = torch.empty_like(a)
        once(a, b, out)
        times = [once(a, b, out)]
        if size >= RATE_SIZE[device.type] or 8 * times[0] > seconds:
            break
        size *= 2
    while sum(times) < seconds:
        times.append(once(a, b, out))
    return 2.0 * size**3 / median(times)


def usable_memory(device: torch.device, root: Path = Path("/")) -> Memory:
    """Return the bytes that can still be allocated: the smallest of all limits.

    On the CPU these are the memory that the kernel calls available, the limits of every control
    group above this process (versions 1 and 2, less what cannot be reclaimed of its use) and
    RLIMIT_AS and RLIMIT_DATA (less what is mapped).
    """
    if device.type == "cuda":
        return Memory(torch.cuda.mem_get_info(device)[0], f"free on {device}")
    found = [*_machine_memory(root), *_cgroup_memory(root), *_rlimit_memory(root)]
    return min(found, key=lambda memory: memory.free_bytes)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most that this process has held: of the GPU's memory, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = _fields(Path("/proc/self/status")).get("VmHWM")
    if resident is not None:
        return resident * 1024
    # Elsewhere than on Linux, where this would count what the process was forked from.
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _machine_memory(root: Path) -> Iterator[Memory]:
    available = _fields(root / "proc/meminfo").get("MemAvailable")
    if available is not None:
        yield Memory(available * 1024, "free memory of the machine")
    else:
        # Without /proc (macOS) only the size is known; half of it is a usual share to be free.
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Memory(total // 2, "half of the machine's memory")


def _cgroup_memory(root: Path) -> Iterator[Memory]:
    for folder in cgroup_folders("memory", root):
        for limit_name, usage_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = read_text(folder / limit_name), read_text(folder / usage_name)
            if limit.isdigit() and usage.isdigit():
                cache = _fields(folder / "memory.stat").get(cache_name, 0)
                free = int(limit) - int(usage) + cache
                yield Memory(max(free, 0), "memory limit of the container")


def _rlimit_memory(root: Path) -> Iterator[Memory]:
    import resource

    used = _fields(root / "proc/self/status")
    for name, field in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit != resource.RLIM_INFINITY:
            free = limit - used.get(field, 0) * 1024
            yield Memory(max(free, 0), f"{name} (ulimit)")


def _fields(path: Path) -> dict[str, int]:
    """Read `name: number ...` or `name number` lines."""
    fields = {}
    for line in read_text(path).splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            fields[words[0]] = int(words[1])
    return fields


def compile_problem(device: torch.device) -> str | None:
    """Say in one line what keeps torch.compile from working here, or return None.

    It compiles C++ for the CPU and a C launcher for the GPU, both against Python's headers.
    """
    compiler, variable = ("g++", "CXX") if device.type == "cpu" else ("gcc", "CC")
    if platform.system() == "Darwin":
        compiler = "clang++"
    if shutil.which(os.environ.get(variable, compiler)) is None:
        other = shutil.which("clang++" if variable == "CXX" else "clang")
        mend = f"{variable}={other}" if other else f"apt install {compiler}"
        return (
            f"no C++ compiler ({compiler}) on PATH: training goes on uncompiled, about 1.5 to 2 "
            f"times slower ({mend} mends that)"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return (
            f"{header} is missing, which torch.compile needs: training goes on uncompiled, about "
            "1.5 to 2 times slower (apt install python3-dev mends that)"
        )
    return None
