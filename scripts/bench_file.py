"""NBD on a raw file, through the page cache and past it, with what fio gets straight from the same file."""
from bench_common import SIZE, Row, cairn, fio, make_file, nbdkit, qsd, run_rows, warm

READ_256K = ["--size", "262144", "--sequential", "--depth", "8"]
WRITE_1M = ["--size", "1048576", "--sequential", "--depth", "8", "--write"]


def node(folder, name, direct):
    path = make_file(folder, name)
    return f"driver=file,node-name=d,filename={path if direct else warm(path)},cache.direct={'on' if direct else 'off'}"


def buffered(folder):
    return [*direct(folder, False), ("nbdkit", nbdkit("file", warm(make_file(folder, "nbdkit"))), "")]


def direct(folder, past_cache=True):
    return [("cairn", cairn(node(folder, "cairn", past_cache), 1), "d"),
            ("qsd", qsd(node(folder, "qsd", past_cache)), "d"),
            ("qsd-io_uring", qsd(node(folder, "qsd-io_uring", past_cache) + ",aio=io_uring"), "d")]


def floor(kind, past_cache, depth=32):
    """fio with one job and the same depth, on our file."""
    return lambda folder, seconds: fio(
        [f"--filename={make_file(folder, 'cairn')}", f"--size={SIZE}", f"--rw=rand{kind}", "--bs=4k",
         f"--iodepth={depth}", "--ioengine=io_uring", f"--direct={int(past_cache)}"], seconds, kind)


ROWS = [
    Row("buffered 4k read QD32", buffered, [], 1.7, floor=floor("read", False)),
    Row("buffered 4k write QD32", buffered, ["--write"], 1.7, floor=floor("write", False)),
    Row("buffered 256k read QD8", buffered, READ_256K, 1.0),
    Row("buffered 1M write QD8", buffered, WRITE_1M, 1.0),
    Row("direct 4k read QD1", direct, ["--depth", "1"], 1.0, floor=floor("read", True, 1)),
    Row("direct 4k read QD32", direct, [], 1.0, 0.5, floor("read", True), 0.95),
    Row("direct 4k write QD32", direct, ["--write"], 1.0, 0.5, floor("write", True), 0.95),
    Row("direct 4k read QD128", direct, ["--depth", "128"], 1.0, 0.5, floor("read", True, 128)),
    Row("direct 256k read QD8", direct, READ_256K, 1.0),
    Row("direct 1M write QD8", direct, WRITE_1M, 1.0),
]


def run(folder, options):
    return {"rows": run_rows(ROWS, folder, options)}
