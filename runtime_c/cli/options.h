/* options.h: the command line, from one table that also makes --help. */
#ifndef EDGELLM_RT_OPTIONS_H
#define EDGELLM_RT_OPTIONS_H

#include "edgellm.h"

enum { most_stops = 16 };

/* What the command line said. Numbers that were not given are negative. */
typedef struct settings {
    const char *directory;
    const char *prompt, *tokens, *system, *logits, *work, *tracker, *queue;
    const char *stops[most_stops];
    int n_stops;
    bool raw, json, jsonl, stay, help;
    int lookup; /* ellm_lookup_mode; negative: not given */
    int64_t n_tokens, threads, threads_decode, context, top_k, seed, prompt_tokens, generate, repeat, step, port;
    double temperature, top_p, min_p, longest;
    char own_directory[4096]; /* where `directory` points if it was left out */
} settings;

typedef enum command_id { RUN = 1, CHAT = 2, BENCH = 4, VERIFY = 8, INFO = 16, GOLDEN = 32, RPC = 128 } command_id;

/* Parses what follows the command's name. USAGE says what is wrong and how to learn more. */
ellm_status options_parse(command_id command, const char *name, int argc, char **argv, settings *s, ellm_error *error);
/* Prints the options of a command on standard output. */
void options_print(command_id command);

#endif
