/* edgellm-rt: run a compiled language model. This file finds the command, prints its error and exits with it. */
#include "posix.h"

#include "program.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct command {
    const char *name;
    command_id id;
    command_run *run;
    const char *summary, *text; /* one line for the list; what --help adds */
} command;

static const command commands[] = {
    {"run", RUN, run_main, "answer one prompt",
     "The answer goes to standard output as it is generated, statistics to standard error.\n\n"
     "  edgellm-rt run DIR -p \"Turn on the light in the kitchen.\"\n"
     "  edgellm-rt run DIR --tokens 1,2,3 --logits logits.f32\n"},
    {"chat", CHAT, chat_main, "hold a conversation",
     "Type a line, get an answer. Ctrl-C stops an answer; at the prompt it leaves. /help lists what else there is.\n\n"
     "With --jsonl, one JSON object per line each way.\n"
     "  in:  {\"type\":\"user\",\"text\":...} {\"type\":\"cancel\"} {\"type\":\"reset\"} "
     "{\"type\":\"system\",\"text\":...}\n"
     "  out: {\"type\":\"ready\",...} {\"type\":\"text\",\"text\":...} {\"type\":\"notice\",\"text\":...}\n"
     "       {\"type\":\"done\",\"reason\":\"stop|length|cancelled\",\"prompt_tokens\":N,\"tokens\":N,\n"
     "        \"prefill_ms\":X,\"decode_ms\":X} {\"type\":\"error\",\"name\":...,\"text\":...}\n"},
    {"bench", BENCH, bench_main, "measure speed and memory",
     "The prompt is arbitrary tokens, and stop tokens are ignored: every run does the same work.\n\n"
     "  edgellm-rt bench DIR --prompt 256 --generate 64\n"
     "  edgellm-rt bench DIR --jsonl --prompt 128,512 --depth 0,512 --repeat 5 --sustained 60\n"
     "  edgellm-rt bench --bandwidth --threads 4\n"},
    {"verify", VERIFY, verify_main, "check every file's SHA-256",
     "Afterwards the bundle opens without hashing its weights, until one of them changes.\n"},
    {"info", INFO, info_main, "what the bundle is and whether it runs here", "Opens the bundle with all its checks.\n"},
    {"golden", GOLDEN, golden_main, "answer the golden prompts, which must come out exactly",
     "The manifest holds greedy answers that every machine must reproduce token by token, and a GPU (--device vulkan)\n"
     "with logits close to the processor's.\n"},
    {"profile", PROFILE, profile_main, "time every step of the plan",
     "One JSON object per line: a phase (decode, prefill), its steps with their times, the sums. Runs with and "
     "without\n"
     "the clock between steps take turns; \"share\" is the steps' sum over the undisturbed time.\n"
     "`edgellm profile` on your desk makes a table of it.\n"},
    {"trace", TRACE, trace_main, "what every step of the plan writes",
     "One JSON object per line: a step, and the SHA-256 of each buffer that it wrote (rows that are padding are left\n"
     "out; of the KV cache, the blocks that it wrote to). `edgellm compare` compares them between machines.\n"},
    {"replay", REPLAY, replay_main, "run one kernel alone, on stored buffers",
     "DIR is what `edgellm compare` writes: replay.json, a kernels.so, and buffers as .npy. What the kernel writes\n"
     "must be as stored, to the bit.\n"},
    {"serve", SERVE, serve_main, "answer programs over HTTP: OpenAI's API and Ollama's",
     "  edgellm-rt serve DIR\n"
     "  curl localhost:11434/v1/chat/completions -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'\n\n"
     "Several answers are computed at a time, and each comes out as if it were alone. Plain HTTP: put a reverse proxy\n"
     "in front of it for TLS. GET /health and /metrics are for whoever watches. SIGTERM ends it cleanly.\n\n"
     "Prints {\"type\":\"ready\",\"address\":...,\"port\":N,...} when it listens.\n"},
    {"prefix", PREFIX, prefix_main, "compute what all conversations with a system prompt begin with",
     "`edgellm compile --system-prompt` ships the file that this writes. Prints {\"tokens\":N,\"ids\":[...]}: the "
     "prompt\n"
     "of a question, of which the file has the first N tokens.\n"},
    {"rpc", RPC, rpc_main, "let a host measure kernels here (no DIR)",
     "Serves TVM's RPC on the loopback; a host reaches it through SSH (`edgellm tune`). Whoever knows the key can run\n"
     "any code here. The key is the first line of standard input, and the end of standard input ends the agent.\n\n"
     "Prints JSON lines: {\"type\":\"ready\",\"port\":N,...}, and {\"type\":\"ended\",\"how\":...} after each "
     "session.\n"},
#ifdef ELLM_VULKAN
    {"gpus", GPUS, gpus_main, "what Vulkan finds here (no DIR)",
     "A JSON object per device, in the order in which one is taken, with what its driver allows kernels: what a "
     "board's\n"
     "[vulkan] section holds. `edgellm deploy` asks this, and compiles for the answer.\n"},
#endif
};
enum { n_commands = sizeof commands / sizeof *commands };

static void print_help(void) {
    printf("edgellm-rt: run a compiled language model.\n\n");
    for (int i = 0; i < n_commands; i++) {
        printf("  edgellm-rt %-7s %s   %s\n", commands[i].name, (commands[i].id & NO_DIRECTORY) != 0 ? "   " : "DIR",
               commands[i].summary);
    }
    printf(
        "\nDIR is a bundle; it may be left out when this program lies in it.\n"
        "`edgellm-rt board --help` is about what is deployed on this machine, `edgellm-rt supervise --help` about a\n"
        "server in the background.\n"
        "`edgellm-rt COMMAND --help` explains a command. Errors are one line on standard error,\n"
        "`edgellm-rt: NAME: text`, and the exit code is the status number of edgellm.h.\n");
}

static int report(ellm_status status, const ellm_error *error) {
    fprintf(stderr, "edgellm-rt: %s: %s\n", ellm_status_name(status),
            error->text[0] != '\0' ? error->text : ellm_status_text(status));
    return (int)status;
}

int main(int argc, char **argv) {
    ellm_error error = {{0}};
    const char *name = argc > 1 ? argv[1] : "--help";
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help();
        return argc > 1 ? 0 : (int)ELLM_USAGE;
    }
    if (strcmp(name, "--version") == 0) {
        printf("edgellm-rt " RT_VERSION ", bundle format 1\n");
        return 0;
    }
    if (strcmp(name, "board") == 0) {
        ellm_status status = board_main(argc - 2, argv + 2, &error);
        return status == ELLM_OK ? 0 : report(status, &error);
    }
    if (strcmp(name, "supervise") == 0) {
        ellm_status status = supervise_main(argc - 2, argv + 2, &error);
        return status == ELLM_OK ? 0 : report(status, &error);
    }
    for (int i = 0; i < n_commands; i++) {
        const command *c = &commands[i];
        if (strcmp(name, c->name) == 0) {
            settings s;
            ellm_status status = options_parse(c->id, c->name, argc - 2, argv + 2, &s, &error);
            if (status == ELLM_OK && s.help) {
                printf("edgellm-rt %s [%soptions]: %s\n\n%s\noptions:\n", c->name,
                       (c->id & NO_DIRECTORY) != 0 ? "" : "DIR] [", c->summary, c->text);
                options_print(c->id);
                return 0;
            }
            if (status == ELLM_OK) {
                status = c->run(&s, &error);
            }
            if (fflush(stdout) != 0 && status == ELLM_OK) {
                status = ellm_fail(&error, ELLM_IO, "standard output: %s", strerror(errno));
            }
            int code = status == ELLM_OK ? 0 : report(status, &error);
#ifdef ELLM_VULKAN
            if (status == ELLM_GPU_LOST) {
                _exit(code); /* a driver whose threads may still compute is not to be torn down under them */
            }
#endif
            return code;
        }
    }
    return report(ellm_fail(&error, ELLM_USAGE, "there is no command '%s'; `edgellm-rt --help` lists them", name),
                  &error);
}
