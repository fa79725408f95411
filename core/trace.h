/*
 * Probes for tracers (USDT): one nop each in the program, and a note in its ELF file that says where it is and where
 * its values are found. Without <sys/sdt.h> at build time they are nothing. Values are what the code has at hand
 * anyway: a probe computes nothing. All of them are listed in cairnd(8); a test compares.
 */
#ifndef CORE_TRACE_H
#define CORE_TRACE_H

#if defined(__has_include)
#if __has_include(<sys/sdt.h>)
#define SDT_USE_VARIADIC
#include <sys/sdt.h>
#define TRACE(name, ...) STAP_PROBEV(cairn, name, ##__VA_ARGS__)
#endif
#endif

#ifndef TRACE
#define TRACE(name, ...) ((void)0)
#endif

#endif
