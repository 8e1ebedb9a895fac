/* options.h: the command line, from one table that also makes --help. */
#ifndef EDGELLM_RT_OPTIONS_H
#define EDGELLM_RT_OPTIONS_H

#include "edgellm.h"

enum { most_stops = 16, most_counts = 16 };

/* --name 1,2,3 */
typedef struct count_list {
    int64_t values[most_counts];
    int n;
} count_list;

/* What the command line said. Numbers that were not given are negative. */
typedef struct settings {
    const char *directory;
    const char *prompt, *tokens, *system, *logits, *work, *tracker, *queue, *listen, *token_file, *name;
    const char *json_schema, *grammar, *tools, *output, *session, *keep, *device;
#ifdef ELLM_VULKAN
    const char *follow;
#endif
    const char *stops[most_stops];
    int n_stops;
    bool takes_cpu; /* set by commands: only the processor can do it, or should */
    bool proves;    /* the GPU is being tried */
    bool raw, json, jsonl, data, help, cold, bandwidth, stay, open, log, attached;
    count_list prompts, depths;
    int lookup; /* ellm_lookup_mode; negative: not given */
    int64_t n_tokens, threads, threads_decode, context, top_k, seed, prompt_tokens, generate, repeat, step;
    int64_t depth, at, sustained, limit, port, sessions, waiting;
    double temperature, top_p, min_p, longest, grace;
    char own_directory[4096]; /* where `directory` points if it was left out */
} settings;

typedef enum command_id {
    RUN = 1,
    CHAT = 2,
    BENCH = 4,
    VERIFY = 8,
    INFO = 16,
    GOLDEN = 32,
    GPUS = 64,
    RPC = 128,
    PROFILE = 256,
    TRACE = 512,
    REPLAY = 1024,
    SERVE = 2048,
    PREFIX = 4096
} command_id;
enum { NO_DIRECTORY = RPC | GPUS }; /* of no bundle */

/* Parses what follows the command's name. USAGE says what is wrong and how to learn more. */
ellm_status options_parse(command_id command, const char *name, int argc, char **argv, settings *s, ellm_error *error);
/* The ids of an option's text, as in 1,2,3, in a fresh array of the caller's. */
ellm_status options_ids(const char *shown, const char *text, int32_t **ids, size_t *n, ellm_error *error);
/* Prints the options of a command on standard output. */
void options_print(command_id command);

#endif
