"""Hostile pickles in a true zip: what they name, what they call, and what they cost."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from tests.attacks import Attack
from tests.attacks.writing import (
    Call,
    Entry,
    Make,
    Name,
    Persistent,
    Raw,
    View,
    Writer,
    checkpoint,
    conv,
    module,
    root,
    zipped,
)

OFF_THE_LIST = "isn't on the list"
BROKEN = "broken off"


def _raw(code: bytes) -> bytes:
    """A checkpoint whose data.pkl is these opcodes."""
    return zipped([Entry(b"archive/data.pkl", code)])


def _call(module: str, name: str, runs: bool = False) -> Attack:
    return Attack(
        f"calls {module}.{name}",
        lambda command: checkpoint({"date": Call(Name(module, name), (command,)), **root()}),
        OFF_THE_LIST,
        runs_in_pickle=runs,
    )


def _stacked(module: str, name: str) -> Attack:
    """STACK_GLOBAL takes dots: Python's own machine walks from attribute to attribute."""
    code = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93."
    return Attack(f"reaches {module}.{name}", lambda _: _raw(code), OFF_THE_LIST)


def _opcodes(name: str, code: bytes, says: str) -> Attack:
    return Attack(name, lambda _: _raw(code), says)


def _in_root(name: str, value: Any, says: Any) -> Attack:
    """A true checkpoint with one more entry."""
    return Attack(name, lambda _: checkpoint({**root(), "extra": value}), says)


def _eval(command: str) -> bytes:
    return checkpoint({"model": Call(Name("builtins", "eval"), (f"__import__('os').system({command!r})",))})


def _function_defaults(_: str) -> bytes:
    """BUILD on a function of an allow-list sets its attributes in Python's own machine: __defaults__, for all calls."""
    state = (None, {"__defaults__": (1, 2, 3)})
    return checkpoint({"model": Make(Name("torch._utils", "_rebuild_tensor_v2"), state)})


def _function_state(_: str) -> bytes:
    code = Writer().code
    function, state = code(Name("torch._utils", "_rebuild_tensor_v2")), code((None, {"__defaults__": (1, 2)}))
    return _raw(b"\x80\x02" + function + state + b"b.")


def _instance(opcode: str) -> Any:
    """INST and OBJ: how protocol 0 and 1 make objects, and call anything."""

    def content(command: str) -> bytes:
        text = Writer().code(command)
        if opcode == "INST":
            return _raw(b"(" + text + b"ios\nsystem\n.")
        return _raw(b"(" + b"cos\nsystem\n" + text + b"o.")

    return content


def _set_state(command: str) -> bytes:
    """A holder whose state names the hooks of unpickling."""
    hooks = {name: Call(Name("torch", "Size"), ((1,),)) for name in ("__setstate__", "__reduce_ex__", "__class__")}
    return checkpoint({**root(), "extra": Make(Name("models.common", "Conv"), {**hooks, "__dict__": command})})


# Laughter: each level holds the level below ten times, by its number in the memo.


def _laughs(levels: int) -> bytes:
    code = b"]q\x00"
    for level in range(1, levels):
        code += b"0](" + (b"h" + bytes([level - 1])) * 10 + b"eq" + bytes([level])
    return code


def _in_yaml(name: str, code: bytes, says: str) -> Attack:
    return Attack(name, lambda _: checkpoint(root(yaml={"backbone": Raw(code), "head": []})), says)


def _long_list(items: int) -> bytes:
    return b"](" + b"N" * items + b"e"


def _copies(function: Name, argument: bytes) -> bytes:
    """One large argument in the memo, copied by a function as often as there are bytes for it."""
    code = Writer().code
    again = b"h\x01h\x02R0"
    made = code(function) + b"q\x010" + argument + b"q\x020"
    return _raw(b"\x80\x02" + made + again * 100_000 + b"N.")


def _tuple_key(levels: int) -> bytes:
    """A dict's key that takes 2 ** levels steps to hash."""
    code = b")q\x00"
    for level in range(levels):
        code += b"0h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return _raw(b"\x80\x02}" + code + b"Ns.")


def _modules_loop(_: str) -> bytes:
    """A module that is its own child."""
    code = b"cmodels.common\nConv\n)\x81q\x00}(" + Writer().code("_modules") + b"}" + Writer().code("again")
    return checkpoint({"model": Raw(code + b"h\x00s" + b"ub")})


def _modules_fan(children: int, levels: int) -> Any:
    """A module with many children, all one module, which has as many, and so on."""

    def content(_: str) -> bytes:
        code = Writer().code
        made = code(module("models.common.Conv", {}))
        for level in range(levels):
            items = b"".join(code(f"m{number}") + b"h" + bytes([level]) for number in range(children))
            below = (
                b"q" + bytes([level]) + b"0cmodels.common\nConv\n)\x81}(" + code("_modules") + b"}(" + items + b"uub"
            )
            made += below
        return checkpoint({"model": Raw(made)})

    return content


def _modules_wide(_: str) -> bytes:
    """A module that is each of its 150,000 children."""
    code = Writer().code
    items = b"".join(code(f"m{number}") + b"h\x00" for number in range(150_000))
    return checkpoint({"model": Raw(b"cmodels.common\nConv\n)\x81q\x00}(" + code("_modules") + b"}(" + items + b"uub")})


def _modules_of_nothing(_: str) -> bytes:
    """130 x 130 modules that share one dict of 100,000 buffers, all None."""
    code = Writer().code
    buffers = b"".join(code(f"b{number}") + b"N" for number in range(100_000))
    made = b"cmodels.common\nConv\n)\x81}(" + code("_buffers") + b"}(" + buffers + b"uubq\x00"
    children = b"".join(code(f"m{number}") + b"h%c" for number in range(130))
    for level in range(2):
        below = children.replace(b"h%c", b"h" + bytes([level]))
        made += b"0cmodels.common\nConv\n)\x81}(" + code("_modules") + b"}(" + below + b"uubq" + bytes([level + 1])
    return checkpoint(root(conv=Raw(made)))


def _persistent(name: str, identity: Any, says: str) -> Attack:
    return Attack(name, lambda _: checkpoint({"model": Persistent(identity)}), says)


def _two_types(_: str) -> bytes:
    """One storage as four floats and as two doubles."""
    float_id = ("storage", Name("torch", "FloatStorage"), "0", "cpu", 4)
    double_id = ("storage", Name("torch", "DoubleStorage"), "0", "cpu", 2)
    pickle = Writer().pickle([Persistent(float_id), Persistent(double_id)])
    return zipped([Entry(b"a/data.pkl", pickle), Entry(b"a/data/0", bytes(16))])


_FLOATS = Name("torch", "FloatStorage")
_LATIN = Writer().code("latin1")
_OBJECT_DTYPE = Make(Name("numpy", "dtype"), (3, "|", None, None, None, -1, -1, 63))

NAMES = [
    _call("os", "system", runs=True),
    _call("posix", "system", runs=True),
    _call("subprocess", "getoutput", runs=True),
    _call("builtins", "exec"),
    _call("__builtin__", "eval"),
    _call("builtins", "getattr"),
    _call("builtins", "__import__"),
    _call("torch", "load"),
    _call("torch.hub", "load"),
    _call("torch.jit", "load"),
    _call("torch.serialization", "load"),
    _call("numpy", "load"),
    _call("numpy.core.multiarray", "fromfile"),
    _call("pickle", "loads"),
    _call("pathlib", "os"),
    _call("argparse", "FileType"),
    _call("collections", "defaultdict"),
    _call("copyreg", "_reconstructor"),
    _call("models.yolo.x", "Model"),
    _call("xmodels.yolo", "Model"),
    _call("torch.nnx", "Linear"),
    _call("torch..nn", "Linear"),
    _call("__main__", "Model"),
    _call("", ""),
    _stacked("torch._utils", "_rebuild_tensor_v2.__globals__"),
    _stacked("torch.nn", "Module.__init__.__globals__"),
    _stacked("models.common", "os.system"),
    _stacked("collections", "OrderedDict.__reduce__"),
    _stacked("torch.nn", "Linear\n"),
    _stacked("models.yolo\n", "Model"),
    Attack("evals", _eval, OFF_THE_LIST, runs_in_pickle=True),
    Attack(
        "a class named so long", lambda _: _raw(b"ctorch.nn\n" + b"a" * 100_000 + b"\n."), "a name of 100009 letters"
    ),
    _in_root("calls an inert name", Call(Name("models.common", "check_output"), ("id",)), None),
    _in_root("calls a path", Call(Name("pathlib", "PosixPath"), ("/etc", "passwd")), None),
    _in_root("has a storage's type for a value", Name("torch", "FloatStorage"), None),
]

OPCODES = [
    Attack("INST", _instance("INST"), "opcode 0x69", runs_in_pickle=True),
    Attack("OBJ of a name", _instance("OBJ"), OFF_THE_LIST, runs_in_pickle=True),
    _opcodes("OBJ", b"(ctorch.nn\nLinear\no.", "opcode 0x6f"),
    _opcodes("EXT1", b"\x80\x02\x82\x01.", "opcode 0x82"),
    _opcodes("EXT2", b"\x80\x02\x83\x01\x00.", "opcode 0x83"),
    _opcodes("EXT4", b"\x80\x02\x84\x01\x00\x00\x00.", "opcode 0x84"),
    _opcodes("PERSID", b"P0\n.", "opcode 0x50"),
    _opcodes("NEXT_BUFFER", b"\x80\x05\x97.", "opcode 0x97"),
    _opcodes("a protocol of tomorrow", b"\x80\x06N.", "protocol"),
    Attack("BUILD on a function", _function_state, "gives a state to something that has none"),
    Attack("NEWOBJ of a function", _function_defaults, "isn't a class on the list"),
    Attack("a holder with a __setstate__", _set_state, None),
    _opcodes("REDUCE on a list", b"\x80\x02])R.", "calls something that isn't a class"),
    _opcodes("REDUCE without a tuple", b"\x80\x02ctorch\nSize\n]R.", "something else than arguments"),
    _opcodes("APPEND to a dict", b"\x80\x02}Na.", "isn't a list"),
    _opcodes("SETITEM of a list", b"\x80\x02]NNs.", "isn't a dict"),
    _opcodes("SETITEMS by halves", b"\x80\x02}(Nu.", "isn't a dict"),
    _opcodes("ADDITEMS to a list", b"\x80\x04](N\x90.", "isn't a set"),
    _opcodes("STACK_GLOBAL of numbers", b"\x80\x04K\x01K\x01\x93.", "something else than text"),
    _opcodes("an empty stack", b"\x80\x020.", BROKEN),
    _opcodes("no mark", b"\x80\x02e.", BROKEN),
    _opcodes("an unknown memo", b"\x80\x02h\x07.", "hasn't made"),
    _opcodes("nothing at the end", b"\x80\x02.", "one object"),
    _opcodes("two objects at the end", b"\x80\x02NN.", "one object"),
    _opcodes("a mark at the end", b"\x80\x02N(N.", "one object"),
    _opcodes("no STOP", b"\x80\x02N", BROKEN),
    _opcodes("no opcode", b"", BROKEN),
    _opcodes("a GLOBAL without an end", b"\x80\x02cos", BROKEN),
    _opcodes("a cut number", b"\x80\x02G\x00", BROKEN),
]

COSTS = [
    _opcodes("LONG4 of 2 GB", b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\x01" * 9, "opcode 0x8b"),
    _opcodes("LONG1 of 255 bytes", b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "128 bits"),
    _opcodes("BINBYTES8 of 2 ** 62", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.", BROKEN),
    _opcodes("BINUNICODE8 of 2 ** 63", b"\x80\x04\x8d" + struct.pack("<Q", 1 << 63) + b"x.", BROKEN),
    _opcodes("BINUNICODE of 4 GB", b"\x80\x02X\xff\xff\xff\xffx.", BROKEN),
    _opcodes("a FRAME of 2 ** 64", b"\x80\x04\x95" + b"\xff" * 8 + b"N.", BROKEN),
    _in_root("a memo of 4 billion places", Raw(b"Nr\xff\xff\xff\xff"), None),
    _opcodes("a million steps", b"\x80\x02" + b"N0" * 600_000 + b"N.", "steps"),
    _opcodes("a pickle of 17 MB", b"\x80\x02B" + struct.pack("<I", 17 << 20) + bytes(17 << 20) + b".", "larger than"),
    _in_root("a billion laughs where nobody looks", Raw(_laughs(30)), None),
    _in_yaml("a billion laughs of lists", _laughs(30), "yaml"),
    _in_yaml("a list in itself", b"]q\x00h\x00a", "yaml"),
    _in_yaml("a dict in itself", b"}q\x00K\x01h\x00s", "yaml"),
    _in_yaml("200,000 lists in one another", b"]" * 200_000 + b"a" * 199_999, "yaml"),
    _in_yaml("a list of 300,000", _long_list(300_000), "yaml"),
    _opcodes("200,000 tuples in one another", b"\x80\x02)" + b"\x85" * 200_000 + b".", "weights only"),
    Attack("a key that takes for ever to hash", lambda _: _tuple_key(100), "a key that is neither"),
    _opcodes("integers that hash alike", b"\x80\x02}\x8a\x08" + struct.pack("<q", (1 << 61) - 1) + b"Ns.", "a key"),
    _opcodes("a float for a key", b"\x80\x02}G" + bytes(8) + b"Ns.", "a key"),
    Attack("a module in itself", _modules_loop, "deep in one another"),
    Attack("modules that fan out without an end", _modules_fan(300, 20), "more than 20000 modules"),
    Attack("a module with itself in 150,000 places", _modules_wide, "more than 20000 modules"),
    Attack("modules with endless buffers of nothing", _modules_of_nothing, "more than 100000 tensors"),
    Attack(
        "copies of a set", lambda _: _copies(Name("builtins", "set"), _long_list(1000) + b"\x85"), "again and again"
    ),
    Attack(
        "copies of bytes",
        lambda _: _copies(Name("_codecs", "encode"), Writer().code("x" * 1_000_000) + _LATIN + b"\x86"),
        "again and again",
    ),
]

STORAGES = [
    _persistent("a persistent id of a module", ("module", _FLOATS, "0", "cpu", 1), "something else than a storage"),
    _persistent("a persistent id of text", "0", "something else than a storage"),
    _persistent("a storage that isn't there", ("storage", _FLOATS, "7", "cpu", 1), "isn't in the file"),
    _persistent("a storage outside its folder", ("storage", _FLOATS, "../data.pkl", "cpu", 1), "isn't in the file"),
    _persistent("a storage of no type", ("storage", "FloatStorage", "0", "cpu", 1), "something else than type"),
    _persistent(
        "a storage of a class", ("storage", Name("torch.nn", "Linear"), "0", "cpu", 1), "something else than type"
    ),
    _persistent("a storage of negative size", ("storage", _FLOATS, "0", "cpu", -1), "something else than type"),
    Attack("a storage of two types", _two_types, "two ways"),
    _in_root(
        "a numpy object scalar", Call(Name("numpy.core.multiarray", "scalar"), (_OBJECT_DTYPE, "x")), "numpy scalar"
    ),
    _in_root(
        "a numpy array of a foreign class",
        Call(Name("numpy.core.multiarray", "_reconstruct"), (Name("models.common", "Conv"), (0,), "b")),
        "foreign class",
    ),
    _in_root(
        "a numpy array of objects",
        Make(Name("numpy", "ndarray"), (1, (1,), Call(Name("numpy", "dtype"), ("O8", False, True)), False, "x")),
        None,
    ),
    _in_root("encode as a codec", Call(Name("_codecs", "encode"), ("x", "zip")), "something else than bytes"),
    _in_root("a torch.Size of text", Call(Name("torch", "Size"), (("a",),)), "torch.Size"),
    _in_root("a torch.device of numbers", Call(Name("torch", "device"), (1,)), "torch.device"),
    _in_root(
        "a parameter of a number", Call(Name("torch._utils", "_rebuild_parameter"), (1, True, None)), "isn't a tensor"
    ),
]


def _tensor(name: str, says: Any, **view: Any) -> Attack:
    """A weight of the model that lies about itself. view: shape, stride, offset, elements."""
    values = np.arange(6, dtype=np.float32)
    weight = View(values, **{"shape": (6,), "stride": (1,), **view})
    return Attack(name, lambda _: checkpoint(root(conv=conv(weight=weight))), says)


OUTSIDE = "outside its storage"
NO_VIEW = "isn't one"
TENSORS = [
    _tensor("a tensor larger than its storage", OUTSIDE, shape=(7,)),
    _tensor("an offset behind the storage", OUTSIDE, offset=6),
    _tensor("a stride that leaves the storage", OUTSIDE, stride=(2,)),
    _tensor("a shape that overflows", OUTSIDE, shape=(1 << 40, 1 << 40), stride=(1 << 40, 1)),
    _tensor("a stride that overflows", OUTSIDE, shape=(2,), stride=((1 << 53) - 1,)),
    _tensor("a negative offset", NO_VIEW, offset=-1),
    _tensor("a tensor of negative stride", NO_VIEW, stride=(-1,)),
    _tensor("a negative side", NO_VIEW, shape=(-6,)),
    _tensor("a side of 2 ** 64", NO_VIEW, shape=(1 << 64,), stride=(0,)),
    _tensor("a shape of text", NO_VIEW, shape=("6",)),
    _tensor("a shape of booleans", NO_VIEW, shape=(True,)),
    _tensor("fewer strides than sides", NO_VIEW, shape=(2, 3)),
    _tensor("nine dimensions", NO_VIEW, shape=(1,) * 9, stride=(1,) * 9),
    _tensor("no elements, sides that overflow", "overflows", shape=(0, 1 << 40, 1 << 40), stride=(1, 1, 1)),
    _tensor("a terabyte of stride 0", "more than the file", shape=(1 << 38,), stride=(0,)),
    _tensor("a few of stride 0, as old files have", None, shape=(2, 3), stride=(0, 1)),
    _tensor("more elements than the member", "another size", elements=7),
    _tensor("fewer elements than the member", "another size", elements=5),
]

ATTACKS = NAMES + OPCODES + COSTS + STORAGES + TENSORS
