# Cairn: `make help` says what there is.

MAKEFLAGS += --no-builtin-rules
VERSION := 0.1.0
PREFIX ?= /usr/local
DESTDIR ?=
BINDIR ?= $(PREFIX)/bin
SBINDIR ?= $(PREFIX)/sbin
MANDIR ?= $(PREFIX)/share/man
UNITDIR ?= $(PREFIX)/lib/systemd/system
COMPLETIONDIR ?= $(PREFIX)/share/bash-completion/completions

ifeq ($(origin CC),default)
CC := gcc
endif
PYTHON ?= /usr/bin/python3
PKG_CONFIG ?= pkg-config
CFLAGS ?= -O2 -g
FUZZ_SECONDS ?= 20

# SAN=address,undefined or SAN=thread: a build of its own beside the plain one.
empty :=
space := $(empty) $(empty)
comma := ,
B := build$(if $(SAN),-$(subst $(comma),-,$(SAN)))
SANFLAGS := $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer)

PACKAGES := json-c libevent_core liburing libnbd zlib libzstd
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wformat=2 \
	-Wundef $(if $(WERROR),-Werror)
ALL_CPPFLAGS = -D_GNU_SOURCE -DCAIRN_VERSION='"$(VERSION)"' -I. -I$(B) $(CPPFLAGS)
PACKAGE_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(PACKAGES) 2>/dev/null)
ALL_CFLAGS = -std=gnu11 $(WARNINGS) -pthread $(PACKAGE_CFLAGS) $(SANFLAGS) $(CFLAGS)
ALL_LDFLAGS = -pthread $(SANFLAGS) $(LDFLAGS)
LIBS = $(shell $(PKG_CONFIG) --libs $(PACKAGES))
FORMAT_LIBS = $(shell $(PKG_CONFIG) --libs zlib libzstd)

GEN := $(B)/generated
GEN_SOURCES := $(addprefix $(GEN)/,options.c commands.c driver_table.c introspect.c)
GEN_HEADERS := $(addprefix $(GEN)/,options.h commands.h introspect.h)
SOURCES := $(wildcard core/*.c core/*.S drivers/*/*.c qmp/*.c daemon/*.c daemon/nbd/*.c daemon/vhost_user/*.c)
OBJECTS := $(patsubst %,$(B)/%.o,$(basename $(filter-out daemon/main.c,$(SOURCES)))) $(GEN_SOURCES:.c=.o)
# Format engines are complete without the rest: tests link them alone.
ENGINE_OBJECTS := $(patsubst %.c,$(B)/%.o,$(wildcard drivers/format/engine/*.c))
TOOL_SOURCES := $(wildcard daemon/tools/cairnctl*.c)
VHOST_BENCH_OBJECTS := $(patsubst %.c,$(B)/%.o,$(wildcard tests/bench/vhost/*.c))
UNIT_TESTS := $(patsubst tests/unit/%.c,$(B)/tests/%,$(wildcard tests/unit/test_*.c))
ENGINE_TESTS := $(patsubst tests/engine/%.c,$(B)/tests/%,$(wildcard tests/engine/test_*.c))
ENGINE_TEST_OBJECTS := $(patsubst %.c,$(B)/%.o,$(filter-out tests/engine/test_%.c,$(wildcard tests/engine/*.c)))
SIM_TESTS := $(patsubst tests/sim/%.c,$(B)/tests/%,$(wildcard tests/sim/test_*.c))
SIM_OBJECTS := $(patsubst %.c,$(B)/%.o,$(filter-out tests/sim/test_%.c,$(wildcard tests/sim/*.c)))
BENCHES := $(patsubst tests/bench/%.c,$(B)/bench/%,$(wildcard tests/bench/*.c))
FUZZERS := $(patsubst tests/fuzz/%.c,$(B)/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
MANPAGES := $(patsubst man/%.in,$(B)/man/%,$(wildcard man/*.in))

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-5s %s\n' '$(1)' '$(2)')

.PHONY: all tests benches FORCE start check bench install uninstall clean format format-check coverage fuzz fuzzers help
.DELETE_ON_ERROR:
.SECONDARY:

all: $(B)/cairnd $(if $(TOOL_SOURCES),$(B)/cairnctl) $(B)/cairn-vhost-bench $(MANPAGES)

tests: $(UNIT_TESTS) $(SIM_TESTS) $(ENGINE_TESTS)
benches: $(BENCHES)

# Files that hold a value and change only when it does: what is made from the value depends on them.
define remember
$(1): FORCE
	@mkdir -p $$(@D); echo '$$(subst ','\'',$(2))' | cmp -s - $$@ || echo '$$(subst ','\'',$(2))' > $$@
endef
$(eval $(call remember,$(B)/.flags,$$(CC) $$(ALL_CPPFLAGS) $$(ALL_CFLAGS) $$(ALL_LDFLAGS)))
$(eval $(call remember,$(B)/.objects,$$(OBJECTS) $$(ENGINE_OBJECTS)))
FORCE:

# Generated files that would not change keep their time: what is made from them waits for the generator, but is made again
# only for those that did change.
$(GEN)/.stamp: scripts/schema_gen.py $(wildcard scripts/schema/*.py schema/*.json schema/*/*.json)
	$(call say,GEN,$(GEN))
	$(Q)$(PYTHON) scripts/schema_gen.py $(GEN) && touch $@
$(GEN_SOURCES) $(GEN_HEADERS) $(GEN)/completion.bash: $(GEN)/.stamp ;

$(B)/%.o: %.c $(B)/.flags | $(GEN)/.stamp
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c $< -o $@
$(B)/%.o: %.S $(B)/.flags
	$(call say,AS,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(ALL_CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@
$(GEN)/%.o: $(GEN)/%.c $(B)/.flags
	$(call say,CC,$(GEN)/$*.c)
	$(Q)$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c $(GEN)/$*.c -o $@

$(B)/libcairn.a: $(OBJECTS) $(B)/.objects
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $(OBJECTS)
$(B)/libcairnformat.a: $(ENGINE_OBJECTS) $(B)/.objects
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $(ENGINE_OBJECTS)

$(B)/cairnd: $(B)/daemon/main.o $(B)/libcairn.a $(B)/libcairnformat.a
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) $^ $(LIBS) -o $@

$(B)/cairnctl: $(TOOL_SOURCES:%.c=$(B)/%.o) $(B)/libcairn.a $(B)/libcairnformat.a
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) $^ $(LIBS) $(shell $(PKG_CONFIG) --libs libedit) -o $@

$(B)/cairn-vhost-bench: $(VHOST_BENCH_OBJECTS) $(B)/libcairn.a $(B)/libcairnformat.a
	$(call say,LD,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) $^ $(LIBS) -o $@

$(B)/tests/test_vhost_queue $(B)/tests/test_vhost_verify: $(filter-out %/main.o,$(VHOST_BENCH_OBJECTS))
$(B)/tests/%: $(B)/tests/unit/%.o $(B)/libcairn.a $(B)/libcairnformat.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(ALL_LDFLAGS) $^ $(LIBS) $(shell $(PKG_CONFIG) --libs check) -o $@
$(B)/tests/%: $(B)/tests/sim/%.o $(SIM_OBJECTS) $(ENGINE_TEST_OBJECTS) $(B)/libcairn.a $(B)/libcairnformat.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(ALL_LDFLAGS) $^ $(LIBS) $(shell $(PKG_CONFIG) --libs check) -o $@
$(B)/tests/%: $(B)/tests/engine/%.o $(ENGINE_TEST_OBJECTS) $(B)/libcairnformat.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(ALL_LDFLAGS) $^ $(FORMAT_LIBS) $(shell $(PKG_CONFIG) --libs check) -o $@
$(B)/bench/%: $(B)/tests/bench/%.o $(B)/libcairn.a $(B)/libcairnformat.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(ALL_LDFLAGS) $^ $(LIBS) -o $@

# A line "@include NAME.inc@" in a manual page is replaced by generated text.
$(B)/man/%: man/%.in $(GEN)/.stamp
	$(call say,MAN,$@)
	$(Q)mkdir -p $(@D) && $(PYTHON) scripts/expand_includes.py $< $(GEN)/docs > $@

start:
	@scripts/deps
	@$(MAKE) --no-print-directory all
	@scripts/start $(B)

check:
	@scripts/deps --tests
	@scripts/check $(if $(SAN),--san $(SAN)) $(SUITES)

bench:
	@scripts/deps --bench
	@$(MAKE) --no-print-directory all benches
	@scripts/bench $(BENCH_ARGS)

# libFuzzer needs clang and a build of its own.
fuzz:
	$(Q)$(MAKE) --no-print-directory CC=clang SAN=fuzzer-no-link,address,undefined fuzzers
	$(Q)scripts/fuzz build-fuzzer-no-link-address-undefined/fuzz $(FUZZ_SECONDS)
fuzzers: $(FUZZERS)
$(B)/fuzz/fuzz_qcow2: $(ENGINE_TEST_OBJECTS)
$(B)/fuzz/fuzz_vhost_chains $(B)/fuzz/fuzz_vhost_messages: $(B)/tests/fuzz/vhost_world.o
$(B)/fuzz/%: $(B)/tests/fuzz/%.o $(B)/libcairn.a $(B)/libcairnformat.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) -pthread -fsanitize=fuzzer,address,undefined $(LDFLAGS) $(filter %.o,$^) $(filter %.a,$^) $(LIBS) -o $@

coverage:
	@scripts/deps --coverage
	@scripts/coverage

install: all
	install -D -m 755 $(B)/cairnd $(DESTDIR)$(SBINDIR)/cairnd
	install -D -m 755 $(B)/cairnctl $(DESTDIR)$(BINDIR)/cairnctl
	install -D -m 755 $(B)/cairn-vhost-bench $(DESTDIR)$(BINDIR)/cairn-vhost-bench
	install -D -m 644 $(GEN)/completion.bash $(DESTDIR)$(COMPLETIONDIR)/cairnctl
	ln -sf cairnctl $(DESTDIR)$(COMPLETIONDIR)/cairnd
	$(Q)for page in $(MANPAGES); do \
		section=$${page##*.}; \
		install -D -m 644 $$page $(DESTDIR)$(MANDIR)/man$$section/$${page##*/} || exit 1; \
	done
	$(Q)mkdir -p $(DESTDIR)$(UNITDIR) && sed 's|@SBINDIR@|$(SBINDIR)|g' daemon/cairnd.service.in \
		> $(DESTDIR)$(UNITDIR)/cairnd.service

uninstall:
	rm -f $(DESTDIR)$(SBINDIR)/cairnd $(DESTDIR)$(BINDIR)/cairnctl $(DESTDIR)$(BINDIR)/cairn-vhost-bench \
		$(DESTDIR)$(UNITDIR)/cairnd.service \
		$(DESTDIR)$(COMPLETIONDIR)/cairnctl $(DESTDIR)$(COMPLETIONDIR)/cairnd
	$(Q)for page in $(notdir $(MANPAGES)); do rm -f $(DESTDIR)$(MANDIR)/man$${page##*.}/$$page; done

format:
	@scripts/format
format-check:
	@scripts/format --check

clean:
	rm -rf build build-*

help:
	@echo 'make            build cairnd, cairnctl and cairn-vhost-bench in build/'
	@echo 'make start      install what is missing, build, serve a fresh disk from run/'
	@echo 'make check      install what is missing, build and run every test (SUITES="unit sim")'
	@echo 'make bench      measure against the peers (BENCH_ARGS="--quick --only nbd,file")'
	@echo 'make fuzz       run the fuzzers, FUZZ_SECONDS=20 each'
	@echo 'make coverage   line coverage of the unit tests'
	@echo 'make install    PREFIX=/usr/local DESTDIR='
	@echo 'make format     clang-format all sources (format-check: show what it would change)'
	@echo 'make clean      remove build/'
	@echo 'Variables: SAN=address,undefined  SAN=thread  CC=clang  WERROR=1  V=1'

-include $(shell find $(B) -name '*.d' 2>/dev/null)
