"""Odd values, and mutations of JSON trees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

#: Texts for places where a name, a path or a script is expected.
TEXTS = (
    "", " ", "\x00", "a\nb", "a\r\nsag: b", "\x1b[31m", "\ud800", "\udfff\ud800", "\u202e",
    "\ufeff",
    "\U0001f680" * 40, "..", "../../etc/passwd", "/etc/passwd", "a/b", "{t}", "{{t}}", "}:task",
    "sag:{t}:task", "unacked", "*", "?", "[", "http://169.254.169.254/latest/meta-data/",
    "file:///etc/passwd", "s3://other/key", "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "a/../b.safetensors", "x.safetensors\n", "//x.safetensors", "inputs/x.pkl", "%s%n%d",
    "{0.__class__}",
    "${jndi:ldap://x}", "<script>", "'; DROP TABLE tasks;--", "__class__", "__unreadable__",
    "self", "request", "NaN", "null", "2030-01-01T00:00:00+99:99", "9999-12-31T23:59:59+00:00",
    "0001-01-01T00:00:00+23:59", "2001-01-01T00:00:00Z", "application/x-python-serialize", "gzip",
    "zlib", "bzip2", "lzma", "zstd", "pickle", "yaml", "base64", "utf-16", "idna", "rot13", "hex",
    "undefined", "unicode_escape", "sag.generate", "os.system", "celery.backend_cleanup",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 7, 63, 64, 65, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1,
    10**400, -(10**4000), 0.0, -0.0, 0.5, 5e-324, 1e308, -1e308, float("nan"), float("inf"),
    float("-inf"), 1e22,
)  # fmt: skip
#: Field names of every level, so that they also turn up where they do not belong.
NAMES = (
    "prompt", "negative_prompt", "model", "seed", "metadata", "latents", "s3", "scale", "priority",
    "deadline_s", "height", "num_inference_steps", "cross_attention_kwargs", "traceparent", "task",
    "id", "args", "kwargs", "request", "eta", "expires", "retries", "timelimit", "group", "chord",
    "chain", "callbacks", "errbacks", "root_id", "parent_id", "reply_to", "correlation_id",
    "stamps", "stamped_headers", "compression", "was-compressed", "ignore_result", "not_after_s",
    "headers", "properties", "body", "body_encoding", "delivery_info", "delivery_tag",
    "content-type", "content-encoding", "lang", "shadow", "meth", "origin", "__unreadable__",
    "self", "schema_version", "one", "many", "image", "mask_image", "strength", "prompt_2",
    "sag_start", "original_size", "pooled_prompt_embeds",
)  # fmt: skip


#: Types that kombu's JSON decodes, and some that it does not know.
KINDS = ("decimal", "uuid", "datetime", "date", "time", "bytes", "base64", "pickle", "", None, 5)


def value(rng: random.Random) -> Any:
    """Any JSON value, seldom a large one."""
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice(TEXTS),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice((None, True, False, [], {}, [[]], [{}], {"": {}})),
        lambda: [rng.choice(TEXTS) for _ in range(rng.randrange(4))],
        lambda: {rng.choice(NAMES + TEXTS): rng.choice(NUMBERS) for _ in range(rng.randrange(4))},
        lambda: rng.choice("ax\u00e4\U0001f680\x00\ud800") * rng.choice((1, 127, 128, 129, 2001)),
        lambda: nested(rng.choice((None, 5, "x")), rng.randrange(1, 60)),
        lambda: "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(8))),
        lambda: rng.getrandbits(rng.choice((8, 64, 256))),
        lambda: rng.uniform(-1e6, 1e6),
        # kombu's encoding of decimals, dates and bytes in JSON.
        lambda: {"__type__": rng.choice(KINDS), "__value__": rng.choice(TEXTS + NUMBERS)},
    ]
    if rng.random() < 0.002:
        return large(rng)
    return rng.choice(kinds)()


def large(rng: random.Random) -> Any:
    """A value of up to a megabyte."""
    count = rng.choice((1_000, 10_000, 50_000))
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice("x\u00e4\x00") * count,
        lambda: [rng.choice(NUMBERS)] * count,
        lambda: {str(number): 0 for number in range(count)},
        lambda: ["a"] * count,
        lambda: "a/" * count + "x.safetensors",
        lambda: "-" * count,
        lambda: nested(0, min(count, 300)),
    ]
    return rng.choice(kinds)()


def nested(inner: Any, depth: int) -> Any:
    """Lists and dicts in each other, `depth` levels."""
    for level in range(depth):
        inner = [inner] if level % 2 else {"a": inner}
    return inner


def mutate(rng: random.Random, tree: Any, times: int = 1) -> Any:
    """Mutate the tree in place: drop, replace, nest, rename or add parts."""
    for _ in range(times):
        tree = _mutate_once(rng, tree)
    return tree


def _mutate_once(rng: random.Random, tree: Any) -> Any:
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.15:
        return _replaced(rng, tree)
    if isinstance(tree, list):
        place = rng.randrange(len(tree))
        match rng.randrange(5):
            case 0:
                del tree[place]
            case 1:
                tree.insert(place, value(rng))
            case 2:
                tree *= rng.randrange(4)
            case _:
                tree[place] = _mutate_once(rng, tree[place])
        return tree
    name = rng.choice(list(tree))
    match rng.randrange(6):
        case 0:
            del tree[name]
        case 1:
            tree[rng.choice(NAMES)] = value(rng)
        case 2:
            tree[rng.choice(TEXTS)] = tree.pop(name)
        case _:
            tree[name] = _mutate_once(rng, tree[name])
    return tree


def _replaced(rng: random.Random, tree: Any) -> Any:
    match rng.randrange(8):
        case 0:
            return [tree]
        case 1:
            return {rng.choice(NAMES): tree}
        case 2:
            return str(tree)[:4000]
        case 3 if isinstance(tree, str):
            return tree + rng.choice(TEXTS)
        case _:
            return value(rng)
