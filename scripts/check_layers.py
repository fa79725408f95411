#!/usr/bin/python3
"""Keeps the shape of the sources: includes never run upward, headers compile alone, files, functions and structs stay
small enough to be read. usage: scripts/check_layers.py [BUILD]"""
import concurrent.futures
import glob
import os
import re
import shlex
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FILE_LINES, FUNCTION_LINES, STRUCT_MEMBERS = 600, 60, 25

# What a folder's files may include, of ours (by folder) and of others (by what the name begins with; C library aside).
# A folder that is not named has the rules of the one above it.
MAY_INCLUDE = {
    "core": {"core"},
    "drivers": {"core", "drivers"},
    "qmp": {"core", "drivers", "qmp"},
    "daemon": {"core", "drivers", "qmp", "daemon"},
    "tests": {"core", "drivers", "qmp", "daemon", "tests"},
}
GENERATED = {"generated/options.h": set(MAY_INCLUDE), "generated/commands.h": {"qmp", "daemon", "tests"},
             "generated/introspect.h": {"qmp", "daemon", "tests"}}
LIBRARIES = {"json-c/": {"qmp", "daemon", "tests"}, "liburing": {"core"}, "event2/": {"core", "daemon", "qmp", "tests"},
             "histedit.h": {"daemon"}, "check.h": {"tests"}, "zlib.h": {"drivers"}, "libnbd.h": {"drivers"},
             "zstd.h": {"drivers"}}


def sources():
    """Paths of all C files and headers, from the root."""
    found = []
    for folder in MAY_INCLUDE:
        for ending in ("c", "h"):
            found += glob.glob(f"{folder}/**/*.{ending}", root_dir=ROOT, recursive=True)
    return sorted(found)


def scripts():
    """Paths of all Python files."""
    found = set(glob.glob("*/**/*.py", root_dir=ROOT, recursive=True))
    for path in glob.glob("scripts/*", root_dir=ROOT) + glob.glob("tests/*/run", root_dir=ROOT):
        if os.path.isfile(os.path.join(ROOT, path)):
            with open(os.path.join(ROOT, path), "rb") as stream:
                if b"python" in stream.readline():
                    found.add(path)
    return sorted(path for path in found if not path.startswith("build"))


def check_includes(path, text):
    folder = path.split("/")[0]
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)', line)
        if not match:
            continue
        ours, other = match.groups()
        if ours:
            allowed = ours.split("/")[0] in MAY_INCLUDE[folder] or folder in GENERATED.get(ours, ())
        else:
            allowed = all(folder in folders for name, folders in LIBRARIES.items() if other.startswith(name))
        if not allowed:
            yield f"{path}:{number}: {folder}/ must not include {ours or other}"


def blank(match):
    """The same lines without their text."""
    return re.sub(r"[^\n]", " ", match.group(0))


def strip(text):
    """Code without comments, preprocessor lines and the content of literals; lines stay where they are."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", blank, text, flags=re.DOTALL)
    text = re.sub(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text)
    return re.sub(r"^[ \t]*#(?:\\\n|[^\n])*", blank, text, flags=re.MULTILINE)


def blocks(code):
    """All {...}: (what stands before since the last ; { or }, body, line of the first, line of the last, depth)."""
    opened, start = [], 0
    for match in re.finditer(r"[;{}]", code):
        at = match.start()
        if match.group() == "{":
            opened.append((code[start:at].strip(), at))
        elif match.group() == "}" and opened:
            head, begin = opened.pop()
            yield head, code[begin + 1:at], code.count("\n", 0, begin) + 1, code.count("\n", 0, at) + 1, len(opened)
        start = at + 1


def members(body):
    """How many members a struct has; a nested anonymous struct counts as one."""
    while re.search(r"\{[^{}]*\}", body):
        body = re.sub(r"\{[^{}]*\}", "", body)
    while re.search(r"\([^()]*\)", body):
        body = re.sub(r"\([^()]*\)", "", body)
    return sum(member.count(",") + 1 for member in body.split(";") if member.strip())


def check_length(path, text):
    lines = text.count("\n")
    if lines > FILE_LINES:
        yield f"{path}: {lines} lines, at most {FILE_LINES} are allowed"


def check_sizes(path, text):
    yield from check_length(path, text)
    for head, body, first, last, depth in blocks(strip(text)):
        struct = re.search(r"\b(?:struct|union)\s*(\w*)(?:\s*__attribute__\s*\(\(.*\)\))?$", head)
        if struct:
            count = members(body)
            if count > STRUCT_MEMBERS:
                yield f"{path}:{first}: struct {struct[1]} has {count} members, at most {STRUCT_MEMBERS} are allowed"
        elif depth == 0 and head.endswith(")") and last - first - 1 > FUNCTION_LINES:
            name = re.search(r"(\w+)\s*\(", head)
            yield (f"{path}:{first}: {name[1] if name else 'function'}() has {last - first - 1} lines, "
                   f"at most {FUNCTION_LINES} are allowed")


def compile_header(path, build):
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-I.", f"-I{build}", "-fsyntax-only"]
    result = subprocess.run([*shlex.split(os.environ.get("CC", "gcc")), *flags, "-x", "c", "-"], cwd=ROOT,
                            input=f'#include "{path}"\n#include "{path}"\n', capture_output=True, text=True,
                            check=False)
    return f"{path}: does not compile alone:\n{result.stderr}" if result.returncode else None


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as stream:
        return stream.read()


def main():
    build = sys.argv[1] if len(sys.argv) > 1 else "build"
    faults, paths = [], sources()
    for path in paths:
        text = read(path)
        faults += check_includes(path, text)
        faults += check_sizes(path, text)
    for path in scripts():
        faults += check_length(path, read(path))
    headers = [path for path in paths if path.endswith(".h")]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        faults += filter(None, pool.map(lambda path: compile_header(path, build), headers))
    for fault in faults:
        print(fault)
    print(f"{len(paths)} files, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
