"""The format engines link with libc and codecs alone, and ask libc for nothing but work on memory: no files, no threads, no
clock, no memory of their own."""
import os
import re
import subprocess
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("CAIRN_BUILD", os.path.join(ROOT, "build")))
LIBRARY = os.path.join(BUILD, "libcairnformat.a")
CODECS = re.compile(r"(deflate|inflate|ZSTD_)\w*$")
PURE = re.compile(r"(mem(chr|cmp|cpy|mem|move|set)|str(chr|cmp|error|len|ncmp|nlen)|qsort|v?snprintf"
                  r"|__\w+_chk|__stack_chk_fail|_GLOBAL_OFFSET_TABLE_)$")
FILES = re.compile(r"(crt1|Scrt1|crti|crtn|crtbegin\w*|crtend\w*|main)\.o$|lib(cairnformat|z|zstd|gcc|gcc_s|c|c_nonshared"
                   r"|mvec|m)\.(a|so[.0-9]*)$|ld-linux[-\w]*\.so[.0-9]*$")


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Links(unittest.TestCase):
    def test_symbols(self):
        lines = [line.split() for line in run("nm", LIBRARY).splitlines()]
        wanted = {words[1] for words in lines if len(words) == 2 and words[0] == "U"}
        defined = {words[2] for words in lines if len(words) == 3}
        self.assertIn("qcow2_open", defined)
        foreign = {name for name in wanted - defined if not CODECS.match(name) and not PURE.match(name)}
        self.assertEqual(foreign, set())

    def test_link_map(self):
        """A program of all of it needs no other library; the linker's map says which it read."""
        with tempfile.TemporaryDirectory() as folder:
            source, program, link_map = (os.path.join(folder, name) for name in ("main.c", "program", "map"))
            with open(source, "w", encoding="utf-8") as stream:
                stream.write("int main(void) { return 0; }\n")
            subprocess.run(["cc", "-c", source, "-o", os.path.join(folder, "main.o")], check=True)
            subprocess.run(["cc", os.path.join(folder, "main.o"), "-Wl,--whole-archive", LIBRARY,
                            "-Wl,--no-whole-archive", "-lz", "-lzstd", f"-Wl,-Map,{link_map}", "-o", program], check=True)
            with open(link_map, encoding="utf-8") as stream:
                loaded = re.findall(r"^LOAD (\S+)$", stream.read(), re.MULTILINE)
            self.assertIn(LIBRARY, loaded)
            self.assertEqual([path for path in loaded if not FILES.search(os.path.basename(path))], [])
            needed = re.findall(r"NEEDED.*\[(.*?)\.so", run("readelf", "-d", program))
            self.assertLessEqual(set(needed), {"libz", "libzstd", "libc"})
            self.assertEqual(subprocess.run([program], check=False).returncode, 0)


if __name__ == "__main__":
    unittest.main()
