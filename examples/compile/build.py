"""Compiles a C project of many files, as distcc does: objects come back from the children in /out, and are linked here."""

import os
import subprocess
import sys

import flurry

SOURCES, OBJECTS, PROGRAM = "/tmp/project", "/tmp/objects", "/tmp/program"
FILES = int(os.environ.get("EXAMPLE_ITEMS", 16))
FUNCTIONS = 8
FUNCTION = """
static unsigned step_%(file)d_%(at)d(const unsigned *in, unsigned *out, unsigned n) {
  unsigned sum = %(file)du * %(at)du;
  for (unsigned i = 0; i < n; i++) {
    out[i] = (in[i] ^ sum) * 2654435761u + %(at)du;
    sum += out[i] >> (i %% 7);
    if (sum & 1u << %(at)d %% 16) sum = sum << 3 | sum >> 29;
    switch (out[i] %% 5) { case 0: sum ^= i; break; case 1: sum += %(file)d; break; default: sum -= out[i]; }
  }
  return sum;
}
"""


def make():
    """Writes the project."""
    os.makedirs(SOURCES, exist_ok=True)
    for file in range(FILES):
        text = "".join(FUNCTION % {"file": file, "at": at} for at in range(FUNCTIONS))
        calls = "".join("  sum ^= step_%d_%d(in, out, n);\n" % (file, at) for at in range(FUNCTIONS))
        text += "unsigned part_%d(const unsigned *in, unsigned *out, unsigned n) {\n  unsigned sum = 0;\n%s  return sum;\n}\n" % (file, calls)
        write("part_%d.c" % file, text)


def write(name, text):
    with open("%s/%s" % (SOURCES, name), "w") as file:
        file.write(text)


def compile(file, target):
    subprocess.run(["gcc", "-O2", "-c", "-o", target, "%s/part_%d.c" % (SOURCES, file)], check=True)


def link(objects):
    parts = "".join("unsigned part_%d(const unsigned *, unsigned *, unsigned);\n" % file for file in range(FILES))
    calls = "".join("  sum += part_%d(in, out, 64);\n" % file for file in range(FILES))
    main = "#include <stdio.h>\n%sint main(void) {\n  unsigned in[64], out[64], sum = 0;\n  for (unsigned i = 0; i < 64; i++) in[i] = i * i;\n%s  printf(\"%%08x\\n\", sum);\n  return 0;\n}\n"
    write("main.c", main % (parts, calls))
    subprocess.run(["gcc", "-O2", "-o", PROGRAM, SOURCES + "/main.c"] + sorted(objects), check=True)
    print("result", subprocess.run([PROGRAM], check=True, stdout=subprocess.PIPE).stdout.decode().strip())


def forked(children):
    me = flurry.fork(children)
    if me.id > 0:
        os.makedirs("/out", exist_ok=True)
        for file in range(me.id - 1, FILES, me.granted):
            compile(file, "/out/part_%d.o" % file)
        flurry.exit()
    objects = []
    for child in flurry.ended(me.ticket):
        if child.state != "exited" or child.status != 0:
            raise SystemExit("child %d has not compiled its files: %s" % (child.id, child.result.decode()))
        objects += child.files
    link(objects)


def here(files):
    os.makedirs(OBJECTS, exist_ok=True)
    objects = ["%s/part_%d.o" % (OBJECTS, file) for file in files]
    for file, target in zip(files, objects):
        compile(file, target)
    return objects


if __name__ == "__main__":
    how = sys.argv[1]
    if how == "prepare":
        make()
        compile(FILES - 1, "/tmp/warm-up.o")
    elif how == "fork":
        forked(int(sys.argv[2]))
    elif how == "alone":
        link(here(range(FILES)))
    elif how == "share":
        make()
        print("compiled", len(here(range(int(sys.argv[2]), FILES, int(sys.argv[3])))))
