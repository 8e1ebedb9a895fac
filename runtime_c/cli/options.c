#include "posix.h"

#include "options.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "follow.h"
#include "utf8.h"

typedef enum kind { FLAG, COUNT, REAL, TEXT, TEXTS, LOOKUP, COUNTS } kind;

/* Short texts lie in it: a pointer to one takes more, and so does its relocation. */
typedef struct option {
    char name[15]; /* without dashes; a single letter takes one dash */
    char letter;   /* short form, 0: none */
    char value[12];
    uint8_t kind;
    uint16_t commands, offset; /* offset: of the value within settings */
    double least, most;
    const char *help;
} option;

#define FIELD(field) (uint16_t)offsetof(settings, field)
enum {
    SAMPLED = RUN | CHAT,
    COMPUTES = RUN | CHAT | BENCH | GOLDEN | PROFILE | TRACE | SERVE | PREFIX,
    TALKS_JSON = RUN | BENCH | VERIFY | INFO | GOLDEN
};

static const option options[] = {
    {"prompt", 'p', "TEXT", TEXT, RUN, FIELD(prompt), 0, 0,
     "answer this; the chat template is applied if there is one"},
    {"tokens", 0, "IDS", TEXT, RUN, FIELD(tokens), 0, 0, "continue these token ids, as in 1,2,3; nothing is added"},
    {"tokens", 0, "IDS", TEXT, TRACE, FIELD(tokens), 0, 0, "what is computed, as in 1,2,3"},
    {"system", 0, "TEXT", TEXT, SAMPLED, FIELD(system), 0, 0,
     "the system prompt (default: the bundle's, if it has one)"},
    {"system", 0, "TEXT", TEXT, PREFIX, FIELD(system), 0, 0, "the system prompt"},
    {"tools", 0, "FILE", TEXT, PREFIX, FIELD(tools), 0, 0, "the tools, a JSON array as OpenAI's API has it"},
    {"output", 'o', "FILE", TEXT, PREFIX, FIELD(output), 0, 0, "where the state is written"},
    {"raw", 0, "", FLAG, RUN, FIELD(raw), 0, 0, "take -p as plain text, without the chat template"},
    {"logits", 0, "FILE", TEXT, RUN, FIELD(logits), 0, 0,
     "write the prompt's logits, float32 (positions, vocabulary); without -n nothing is generated"},
    {"step", 0, "N", COUNT, RUN, FIELD(step), 1, 1024,
     "with --logits: feed N tokens at a time (default 64); the bits must not depend on it"},
    {"n", 'n', "N", COUNT, SAMPLED, FIELD(n_tokens), 0, INT_MAX,
     "generate at most N tokens (default: until the model stops)"},
    {"prompt", 0, "N", COUNTS, BENCH, FIELD(prompts), 1, 1 << 24,
     "tokens of the prompt (default 128); with --jsonl: N,N,..."},
    {"depth", 0, "N,N,...", COUNTS, BENCH, FIELD(depths), 0, 1 << 24,
     "with --jsonl: decode behind N positions (default 0)"},
    {"generate", 0, "N", COUNT, BENCH, FIELD(generate), 1, 1 << 24, "tokens to generate (default 64)"},
    {"repeat", 0, "N", COUNT, BENCH, FIELD(repeat), 1, 1000, "measurements; the median counts (default 3)"},
    {"tokens", 0, "N", COUNT, PROFILE, FIELD(prompt_tokens), 0, 1 << 24, "tokens of the prompt (default 128; 0: none)"},
    {"depth", 0, "N", COUNT, PROFILE, FIELD(depth), 0, 1 << 24, "positions before the token of decode (default 128)"},
    {"runs", 0, "N", COUNT, PROFILE, FIELD(repeat), 1, 1000,
     "measurements; the faster half of them counts (default 20)"},
    {"step", 0, "N", COUNT, TRACE, FIELD(step), 1, 64, "feed N tokens at a time (default 8)"},
    {"data", 0, "", FLAG, TRACE, FIELD(data), 0, 0, "after each line, the bytes that it describes"},
    {"at", 0, "K", COUNT, TRACE, FIELD(at), 0, INT_MAX,
     "only step K: its arguments, then their bytes, before and after"},
#ifdef EDGELLM_FOLLOWS
    {"follow", 0, "FILE", TEXT, TRACE, FIELD(follow), 0, 0,
     "on a GPU: compute each step from what --data printed of another one"},
#endif
    {"limit", 0, "S", COUNT, BENCH, FIELD(limit), 1, 86400,
     "with --jsonl: no further sample of a figure after S seconds"},
    {"sustained", 0, "S", COUNT, BENCH, FIELD(sustained), 1, 86400,
     "with --jsonl: then decode for S seconds, one line per second"},
    {"cold", 0, "", FLAG, BENCH, FIELD(cold), 0, 0, "with --jsonl: drop the bundle from the page cache first"},
    {"bandwidth", 0, "", FLAG, BENCH, FIELD(bandwidth), 0, 0,
     "measure the memory instead, with --device vulkan the GPU's; needs no bundle"},
    {"temperature", 0, "T", REAL, SAMPLED, FIELD(temperature), 0, 1e4, "0: always the likeliest token"},
    {"top-k", 0, "K", COUNT, SAMPLED, FIELD(top_k), 0, INT_MAX, "choose among the K likeliest (0: off)"},
    {"top-p", 0, "P", REAL, SAMPLED, FIELD(top_p), 0, 1, "... that together have probability P (1: off)"},
    {"min-p", 0, "P", REAL, SAMPLED, FIELD(min_p), 0, 1, "... at least P times as likely as the likeliest (0: off)"},
    {"seed", 0, "N", COUNT, SAMPLED, FIELD(seed), 0, 9.2e18, "the same seed gives the same answer on every board"},
    {"stop", 0, "TEXT", TEXTS, SAMPLED, FIELD(stops), 0, 0, "end the answer before TEXT; up to 16 times"},
    {"json-schema", 0, "FILE", TEXT, SAMPLED, FIELD(json_schema), 0, 0,
     "the answer is JSON that satisfies this schema (or {...}: the schema itself)"},
    {"grammar", 0, "FILE", TEXT, SAMPLED, FIELD(grammar), 0, 0,
     "the answer is as this grammar says, a subset of GBNF (or text with ::= in it)"},
    {"threads", 0, "N", COUNT, COMPUTES | REPLAY | RPC, FIELD(threads), 1, 1024,
     "threads (default: as many as turn out fastest)"},
    {"threads-decode", 0, "N", COUNT, COMPUTES, FIELD(threads_decode), 1, 1024,
     "threads while answering, where that differs"},
    {"lookup", 0, "WHEN", LOOKUP, RUN | CHAT | BENCH, FIELD(lookup), 0, 0,
     "guess tokens from earlier text: on, off or auto, where it is faster (default; bench: off)"},
    {"device", 0, "NAME", TEXT, COMPUTES, FIELD(device), 0, 0,
     "cpu, vulkan or auto (default): the GPU, where it works and is faster"},
    {"context", 0, "N", COUNT, COMPUTES, FIELD(context), 1, 1 << 24,
     "positions to make room for (default: the model's, at most 4096)"},
    {"session", 0, "FILE", TEXT, CHAT, FIELD(session), 0, 0,
     "go on with the conversation in FILE, if it is there, and leave it there: what was computed, too"},
    {"jsonl", 0, "", FLAG, CHAT, FIELD(jsonl), 0, 0, "one JSON object per line each way, for programs"},
    {"jsonl", 0, "", FLAG, BENCH, FIELD(jsonl), 0, 0, "print every sample as it is taken, one JSON object per line"},
    {"json", 0, "", FLAG, TALKS_JSON, FIELD(json), 0, 0, "print one JSON object"},
    {"port", 0, "N", COUNT, RPC, FIELD(port), 1, 65535, "listen on this port of the loopback (default: any free one)"},
    {"work", 0, "DIR", TEXT, RPC, FIELD(work), 0, 0, "where uploads go; programs must be allowed to run from there"},
    {"longest", 0, "S", REAL, RPC, FIELD(longest), 0, 1e7,
     "end a session after S seconds, whatever the host says (0: off)"},
    {"stay", 0, "", FLAG, RPC, FIELD(stay), 0, 0, "go on when standard input ends"},
    {"tracker", 0, "HOST:PORT", TEXT, RPC, FIELD(tracker), 0, 0, "wait in the queue of a TVM tracker; no key is read"},
    {"queue", 0, "NAME", TEXT, RPC, FIELD(queue), 0, 0, "... the queue's name: the kind of board"},
    {"listen", 0, "ADDRESS", TEXT, SERVE, FIELD(listen), 0, 0, "listen there (default 127.0.0.1: this machine only)"},
    {"port", 0, "N", COUNT, SERVE, FIELD(port), 0, 65535, "... on this port (default 11434; 0: any free one)"},
    {"token-file", 0, "FILE", TEXT, SERVE, FIELD(token_file), 0, 0,
     "its first line is the token that clients must present"},
    {"open", 0, "", FLAG, SERVE, FIELD(open), 0, 0, "with --listen: serve everybody who gets there, without a token"},
    {"sessions", 0, "N", COUNT, SERVE, FIELD(sessions), 1, 64,
     "answers computed at a time (default 4, fewer where memory is short)"},
    {"waiting", 0, "N", COUNT, SERVE, FIELD(waiting), 0, 1024,
     "answers that may wait for a session; beyond that, 503 (default 32)"},
    {"grace", 0, "S", REAL, SERVE, FIELD(grace), 0, 3600, "finish answers for so long when told to stop (default 10)"},
    {"keep", 0, "DIR", TEXT, SERVE, FIELD(keep), 0, 0,
     "leave what sessions hold there at the end, and begin with it the next time (conversations are on the disk then)"},
    {"name", 0, "NAME", TEXT, SERVE, FIELD(name), 0, 0, "the model's name in the API (default: its own)"},
    {"attached", 0, "", FLAG, SERVE, FIELD(attached), 0, 0, "end when standard input ends"},
    {"log", 0, "", FLAG, SERVE, FIELD(log), 0, 0, "a line on standard error for each request"},
    {"help", 'h', "", FLAG, 0xffff, FIELD(help), 0, 0, "this"},
};
enum { n_options = sizeof options / sizeof *options };

void options_print(command_id command) {
    for (int i = 0; i < n_options; i++) {
        const option *o = &options[i];
        if ((o->commands & command) != 0) {
            char left[64], letter[8] = "    ";
            if (o->letter != 0) {
                snprintf(letter, sizeof letter, "-%c%s ", o->letter, o->name[1] == '\0' ? "" : ",");
            }
            snprintf(left, sizeof left, "%s%s%s%s%s", letter, o->name[1] == '\0' ? "" : "--",
                     o->name[1] == '\0' ? "" : o->name, o->value[0] == '\0' || o->name[1] == '\0' ? "" : " ", o->value);
            printf("  %-22s %s\n", left, o->help);
        }
    }
}

static ellm_status set(const option *o, const char *shown, const char *text, settings *s, ellm_error *error) {
    char *place = (char *)s + o->offset, *end = NULL;
    if (strcmp(o->value, "TEXT") == 0 && !ellm_utf8_valid((const uint8_t *)text, strlen(text))) {
        return ellm_fail(error, ELLM_TEXT_INVALID, "%s: %s", shown, ellm_status_text(ELLM_TEXT_INVALID));
    }
    if (o->kind == TEXT) {
        *(const char **)(void *)place = text;
    } else if (o->kind == TEXTS) {
        if (s->n_stops == most_stops || text[0] == '\0') {
            return ellm_fail(error, ELLM_USAGE, "%s: at most %d texts, none of them empty", shown, (int)most_stops);
        }
        s->stops[s->n_stops++] = text;
    } else if (o->kind == LOOKUP) {
        static const char *const names[] = {
            [ELLM_LOOKUP_AUTO] = "auto", [ELLM_LOOKUP_ON] = "on", [ELLM_LOOKUP_OFF] = "off"};
        int mode = ELLM_LOOKUP_OFF;
        while (mode >= 0 && strcmp(names[mode], text) != 0) {
            mode--;
        }
        if (mode < 0) {
            return ellm_fail(error, ELLM_USAGE, "%s is on, off or auto, not '%s'", shown, text);
        }
        *(int *)(void *)place = mode;
    } else if (o->kind == COUNTS) {
        count_list *list = (count_list *)(void *)place;
        list->n = 0;
        for (const char *at = text;; at = end + 1) {
            errno = 0;
            long long value = strtoll(at, &end, 10);
            if (end == at || (*end != '\0' && *end != ',') || errno != 0 || (double)value < o->least
                || (double)value > o->most || list->n == most_counts) {
                return ellm_fail(error, ELLM_USAGE, "%s wants up to %d whole numbers from %.0f to %.0f, not '%s'",
                                 shown, (int)most_counts, o->least, o->most, text);
            }
            list->values[list->n++] = value;
            if (*end == '\0') {
                break;
            }
        }
    } else if (o->kind == COUNT) {
        errno = 0;
        long long value = strtoll(text, &end, 10);
        if (end == text || *end != '\0' || errno != 0 || (double)value < o->least || (double)value > o->most) {
            return ellm_fail(error, ELLM_USAGE, "%s wants a whole number from %.0f to %.0f, not '%s'", shown, o->least,
                             o->most, text);
        }
        *(int64_t *)(void *)place = value;
    } else {
        double value = strtod(text, &end);
        if (end == text || *end != '\0' || !(value >= o->least && value <= o->most)) {
            return ellm_fail(error, ELLM_USAGE, "%s wants a number from %g to %g, not '%s'", shown, o->least, o->most,
                             text);
        }
        *(double *)(void *)place = value;
    }
    return ELLM_OK;
}

/* The option `argument` names, its value behind "=" if there is one. */
static const option *find(command_id command, const char *argument, const char **value) {
    *value = NULL;
    for (int i = 0; i < n_options; i++) {
        const option *o = &options[i];
        if ((o->commands & command) == 0) {
            continue;
        }
        if (o->letter != 0 && argument[1] == o->letter) {
            if (argument[2] == '\0') {
                return o;
            }
            if (o->kind != FLAG) { /* -n16 */
                *value = argument + 2;
                return o;
            }
        }
        size_t n = strlen(o->name);
        if (argument[1] == '-' && n > 1 && strncmp(argument + 2, o->name, n) == 0) {
            if (argument[2 + n] == '\0') {
                return o;
            }
            if (argument[2 + n] == '=' && o->kind != FLAG) {
                *value = argument + 3 + n;
                return o;
            }
        }
    }
    return NULL;
}

/* DIR may be left out when the program lies inside the bundle. */
static ellm_status own_directory(const char *name, settings *s, ellm_error *error) {
    ssize_t n = readlink("/proc/self/exe", s->own_directory, sizeof s->own_directory - 32);
    char *slash = NULL;
    if (n > 0) {
        s->own_directory[n] = '\0';
        slash = strrchr(s->own_directory, '/');
    }
    if (slash != NULL) {
        memcpy(slash, "/manifest.json", sizeof "/manifest.json");
        bool inside = access(s->own_directory, F_OK) == 0;
        slash[slash == s->own_directory ? 1 : 0] = '\0';
        if (inside) {
            s->directory = s->own_directory;
            return ELLM_OK;
        }
    }
    return ellm_fail(error, ELLM_USAGE, "which bundle? edgellm-rt %s DIR; `edgellm-rt %s --help` explains", name, name);
}

ellm_status options_parse(command_id command, const char *name, int argc, char **argv, settings *s, ellm_error *error) {
    *s = (settings){.takes_cpu = (command & (GOLDEN | TRACE | PROFILE | PREFIX)) != 0,
                    .n_tokens = -1,
                    .lookup = -1,
                    .threads = -1,
                    .threads_decode = -1,
                    .context = -1,
                    .top_k = -1,
                    .seed = -1,
                    .prompt_tokens = -1,
                    .generate = -1,
                    .step = -1,
                    .depth = -1,
                    .at = -1,
                    .port = -1,
                    .longest = -1,
                    .sessions = -1,
                    .waiting = -1,
                    .grace = -1,
                    .repeat = -1,
                    .sustained = -1,
                    .limit = -1,
                    .temperature = -1,
                    .top_p = -1,
                    .min_p = -1};
    bool only_operands = false;
    for (int i = 0; i < argc; i++) {
        const char *argument = argv[i], *value;
        if (only_operands || argument[0] != '-' || argument[1] == '\0') {
            if (s->directory != NULL) {
                return ellm_fail(error, ELLM_USAGE,
                                 "one bundle at a time: '%s' is one too many (quote text that has spaces)", argument);
            }
            s->directory = argument;
            continue;
        }
        if (strcmp(argument, "--") == 0) {
            only_operands = true;
            continue;
        }
        const option *o = find(command, argument, &value);
        if (o == NULL) {
            return ellm_fail(error, ELLM_USAGE, "%s has no option %s; `edgellm-rt %s --help` lists them", name,
                             argument, name);
        }
        if (o->kind == FLAG) {
            *((bool *)(void *)((char *)s + o->offset)) = true;
            continue;
        }
        if (value == NULL) {
            if (i + 1 == argc) {
                return ellm_fail(error, ELLM_USAGE, "%s wants a value: %s %s", argument, argument, o->value);
            }
            value = argv[++i];
        }
        ellm_status status = set(o, argument, value, s, error);
        if (status != ELLM_OK) {
            return status;
        }
    }
    return s->help || s->bandwidth || s->directory != NULL || (command & NO_DIRECTORY) != 0
               ? ELLM_OK
               : own_directory(name, s, error);
}

ellm_status options_ids(const char *shown, const char *text, int32_t **ids, size_t *n, ellm_error *error) {
    *n = 0;
    *ids = calloc(strlen(text) / 2 + 1, sizeof **ids);
    if (*ids == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "%s", shown);
    }
    for (const char *at = text;;) {
        char *end;
        errno = 0;
        long value = strtol(at, &end, 10);
        if (end == at || errno != 0 || value < 0 || value > INT32_MAX || (*end != ',' && *end != '\0')) {
            return ellm_fail(error, ELLM_USAGE, "%s wants numbers like 1,2,3; there is something else at '%.20s'",
                             shown, at);
        }
        (*ids)[(*n)++] = (int32_t)value;
        if (*end == '\0') {
            return ELLM_OK;
        }
        at = end + 1;
    }
}
