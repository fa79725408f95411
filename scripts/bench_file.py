"""NBD on a raw file, through the page cache and past it, with what fio gets straight from the same file."""
from bench_common import SIZE, Row, cairn, cold, fio, make_file, nbdkit, qsd, run_rows, warm

READ_256K = ["--size", "262144", "--sequential", "--depth", "8"]
WRITE_1M = ["--size", "1048576", "--sequential", "--depth", "8", "--write"]


def node(path, direct):
    return f"driver=file,node-name=d,filename={path},cache.direct={'on' if direct else 'off'}"


def servers(folder, direct, prepare):
    def path(name):
        return prepare(make_file(folder, name))

    ours = [("cairn", cairn(node(path("cairn"), direct), 1), "d"),
            ("qsd", qsd(node(path("qsd"), direct)), "d"),
            ("qsd-io_uring", qsd(node(path("qsd-io_uring"), direct) + ",aio=io_uring"), "d")]
    return ours if direct else [*ours, ("nbdkit", nbdkit("file", path("nbdkit")), "")]


def cached(folder):
    return servers(folder, False, warm)


def written(folder):
    """Not in the page cache before: in what sequential reads leave there, the kernel takes ten times as long for a small
    write as in what small writes leave, whoever writes."""
    return servers(folder, False, cold)


def direct(folder):
    return servers(folder, True, cold)


def floor(kind, past_cache, depth=32):
    """fio with one job and the same depth, on our file, which it would drop from the page cache unless told."""
    return lambda folder, seconds: fio(
        [f"--filename={make_file(folder, 'cairn')}", f"--size={SIZE}", f"--rw=rand{kind}", "--bs=4k",
         f"--iodepth={depth}", "--ioengine=io_uring", "--invalidate=0",
         f"--direct={int(past_cache)}"], seconds, kind)


ROWS = [
    Row("buffered 4k read QD32", cached, [], 1.7, floor=floor("read", False)),
    Row("buffered 4k write QD32", written, ["--write"], 1.7, floor=floor("write", False)),
    Row("buffered 256k read QD8", cached, READ_256K, 1.0),
    Row("buffered 1M write QD8", written, WRITE_1M, 1.0),
    Row("direct 4k read QD1", direct, ["--depth", "1"], 1.0, floor=floor("read", True, 1)),
    Row("direct 4k read QD32", direct, [], 1.0, 0.5, floor("read", True), 0.95),
    Row("direct 4k write QD32", direct, ["--write"], 1.0, 0.5, floor("write", True), 0.95),
    Row("direct 4k read QD128", direct, ["--depth", "128"], 1.0, 0.5, floor("read", True, 128)),
    Row("direct 256k read QD8", direct, READ_256K, 1.0),
    Row("direct 1M write QD8", direct, WRITE_1M, 1.0),
]


def run(folder, options):
    return {"rows": run_rows(ROWS, folder, options)}
