/* program.h: what the commands of edgellm-rt share. Unlike the library, the program prints and exits. */
#ifndef EDGELLM_RT_PROGRAM_H
#define EDGELLM_RT_PROGRAM_H

#include "edgellm.h"
#include "error.h"
#include "options.h"

#define RT_VERSION "0.1.0"

/* A command runs with parsed options and reports what failed in `error`; main prints it and exits with it. */
typedef ellm_status command_run(const settings *s, ellm_error *error);
command_run run_main, chat_main, bench_main, bandwidth_main, verify_main, info_main, golden_main;
command_run profile_main, trace_main, replay_main, rpc_main, serve_main, prefix_main, gpus_main;
command_run gpu_bandwidth_main; /* only with ELLM_VULKAN */

/* edgellm-rt board: not about one bundle, so it reads its own arguments. */
ellm_status board_main(int argc, char **argv, ellm_error *error);
/* edgellm-rt supervise: the same, for the arguments of serve follow. */
ellm_status supervise_main(int argc, char **argv, ellm_error *error);

/* Milliseconds of the monotonic clock. */
double clock_ms(void);

/* Ctrl-C and SIGTERM set a flag and cancel the context's evaluation; a third one ends the program at once. */
void interrupts_catch(void);
void interrupts_cancel(ellm_context *context); /* which evaluation to cancel; NULL: none */
int interrupts_count(void);
void interrupts_clear(void);

/* Writes everything to standard output and flushes. IO if the reader is gone. */
ellm_status output_write(const char *text, size_t n_bytes, ellm_error *error);

#endif
