/* edgellm.h: run a compiled language model.
 *
 *   ellm_model    an opened, validated bundle: weights mapped read-only, kernels, plan, tokenizer. Immutable
 *                 after open; any number of contexts may share it. Must outlive its contexts.
 *   ellm_context  everything mutable: thread pool, arena, KV pool, sessions. All memory is allocated at open;
 *                 nothing allocates afterwards. One thread may use a context at a time.
 *
 * Whatever can fail returns ellm_status and delivers through out-parameters. Nothing here prints or exits.
 * Closing or freeing NULL is safe. Strings are UTF-8. */
#ifndef EDGELLM_H
#define EDGELLM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ------------------------------------------------------------------------------------------- */

/* One list makes the enum, the text and the program's exit codes. Numbers are frozen once released. */
#define ELLM_STATUS_LIST(X)                                                                                            \
    X(OK, 0, "ok")                                                                                                     \
    X(USAGE, 2, "wrong arguments")                                                                                     \
    X(IO, 10, "a file could not be read or written")                                                                   \
    X(NO_MEMORY, 11, "not enough memory")                                                                              \
    X(BUNDLE_MISSING, 20, "the bundle or one of its files is missing")                                                 \
    X(BUNDLE_CORRUPT, 21, "a bundle file does not match its checksum or size")                                         \
    X(BUNDLE_FORMAT, 22, "a bundle file is malformed")                                                                 \
    X(BUNDLE_VERSION, 23, "the bundle has a format version this runtime does not read")                                \
    X(CPU_UNSUPPORTED, 24, "the bundle was compiled for another CPU")                                                  \
    X(PLAN_INVALID, 25, "the plan refers to something that does not exist or does not fit")                            \
    X(KERNEL_INVALID, 26, "kernels.so is malformed or lacks a kernel")                                                 \
    X(KERNEL_FAILED, 27, "a kernel reported an error")                                                                 \
    X(TOKENIZER_INVALID, 30, "tokenizer.bin is malformed")                                                             \
    X(TEMPLATE_INVALID, 31, "chat.bin is malformed")                                                                   \
    X(TEMPLATE_FAILED, 32, "the chat template raised an error")                                                        \
    X(TEMPLATE_LIMIT, 33, "the chat template exceeded its time or memory limit")                                       \
    X(TOKEN_RANGE, 40, "a token id is outside the vocabulary")                                                         \
    X(CONTEXT_FULL, 41, "the context is full")                                                                         \
    X(BUFFER_SMALL, 42, "the caller's buffer is too small")                                                            \
    X(CANCELLED, 43, "cancelled")                                                                                      \
    X(GRAMMAR_INVALID, 44, "the grammar or schema is malformed, or has what is not supported")                         \
    X(GRAMMAR_LIMIT, 45, "the grammar or schema is too large, or has too many readings")                               \
    X(GRAMMAR_STUCK, 46, "the vocabulary cannot write what the grammar wants")                                         \
    X(TEXT_INVALID, 47, "the text is not UTF-8")                                                                       \
    X(BOARD_BUSY, 50, "somebody else changes what is deployed here")                                                   \
    X(BOARD_REFUSED, 51, "the model does not prove itself on this board")                                              \
    X(SESSION_INVALID, 70, "a saved session is damaged")                                                               \
    X(INTERNAL, 99, "internal error")                                                                                  \
    X(SIGNATURE_MISSING, 60, "the bundle is not signed")                                                               \
    X(SIGNATURE_INVALID, 61, "the signature is wrong")                                                                 \
    X(SIGNATURE_UNTRUSTED, 62, "signed by another key")                                                                \
    X(KEY_INVALID, 63, "a key file is malformed or open to others")                                                    \
    X(KEY_MISSING, 64, "the key to the weights is missing")                                                            \
    X(DECRYPTION_FAILED, 65, "the weights do not decrypt")                                                             \
    X(GPU_MISSING, 80, "there is no GPU here that can run the bundle")                                                 \
    X(GPU_LOST, 81, "the GPU stopped working")

typedef enum ellm_status {
#define ELLM_STATUS_ENUM(name, number, text) ELLM_##name = number,
    ELLM_STATUS_LIST(ELLM_STATUS_ENUM)
#undef ELLM_STATUS_ENUM
} ellm_status;

/* Static text of a status, and its name without the prefix ("BUNDLE_CORRUPT"). Never NULL. */
const char *ellm_status_text(ellm_status status);
const char *ellm_status_name(ellm_status status);

/* What failed, where, and what to do. Filled by calls that take it; may be NULL. Always NUL-terminated. */
typedef struct ellm_error {
    char text[512];
} ellm_error;

/* ---- model -------------------------------------------------------------------------------------------- */

typedef struct ellm_model ellm_model;

/* What computes, of what a bundle has kernels and weights for. */
typedef enum ellm_device {
    ELLM_DEVICE_CPU_FIRST, /* the processor, else a GPU */
    ELLM_DEVICE_GPU_FIRST,
    ELLM_DEVICE_CPU, /* no other: USAGE where the bundle is not for it */
    ELLM_DEVICE_GPU,
} ellm_device;

/* Opens the bundle directory `path`, for the processor if it is for both: checks manifest, plan, kernels, tokenizer and template by SHA-256, the
 * weight shards by their verified stamp (hashing them again where it is missing or stale), and the CPU. */
ellm_status ellm_model_open(const char *path, ellm_model **model, ellm_error *error);
void ellm_model_close(ellm_model *model);

/* Hashes every file of the bundle and, on success, writes the verified stamp if the directory is writable.
 * `progress` (may be NULL) is called with bytes done and bytes total. */
typedef void (*ellm_progress)(uint64_t done, uint64_t total, void *user);
ellm_status ellm_bundle_verify(const char *path, ellm_progress progress, void *user, ellm_error *error);

/* What a bundle must prove before it is opened, and the key to its weights: paths of files, FORMAT.md says what is in
 * them. `pinned`: public keys, one of which must have signed the bundle; NULL: any bundle opens. `secret`: the key
 * that its weights are encrypted with; NULL: encrypted bundles do not open. */
typedef struct ellm_trust {
    const char *pinned, *secret;
} ellm_trust;

/* As ellm_model_open and ellm_bundle_verify. Encrypted weights are decrypted to memory of their own, with all cores. */
ellm_status ellm_model_open_trusted(const char *path, const ellm_trust *trust, ellm_model **model, ellm_error *error);
/* The same for a device. Whether there is a GPU that works turns out when a context is opened: GPU_MISSING, GPU_LOST and
 * NO_MEMORY are reasons to open the model again for the processor. */
ellm_status ellm_model_open_on(const char *path, const ellm_trust *trust, ellm_device device, ellm_model **model,
                               ellm_error *error);
ellm_status ellm_bundle_verify_trusted(const char *path, const ellm_trust *trust, ellm_progress progress, void *user,
                                       ellm_error *error);

typedef struct ellm_model_info {
    const char *name;         /* owned by the model, like every string here */
    const char *architecture; /* "LlamaForCausalLM" */
    const char *scheme;       /* "w4a8" */
    const char *tier;         /* "dotprod" */
    const char *manifest;     /* the whole manifest.json */
    size_t manifest_bytes;
    int32_t vocab_size;
    int32_t context_length; /* largest position + 1 the model was compiled for */
    int32_t sliding_window; /* positions visible to attention, 0: all */
    int32_t step_rows;      /* of a prompt, that are computed at once at most */
    uint64_t weight_bytes, arena_bytes, kv_bytes_per_token;
    uint64_t state_bytes_per_session; /* besides: the same however long a session is; such a session cannot be cut */
    uint64_t decrypted_bytes, locked_bytes; /* weights decrypted to memory, and how much of that never gets to swap */
    bool on_gpu;                            /* a GPU computes; else the processor */
    bool is_split;                          /* both do: the GPU has the first layers */
    bool is_both;                           /* the other one could, too */
    double gpu_times_slower;                /* as the board's GPU is known to be than its processor; 0: not known */
} ellm_model_info;
void ellm_model_get_info(const ellm_model *model, ellm_model_info *info);

/* ---- context and sessions ------------------------------------------------------------------------------ */

typedef struct ellm_context ellm_context;

typedef struct ellm_context_options {
    int32_t n_sessions;        /* default 1 */
    int32_t context_length;    /* positions per session; 0: min(model's, 4096) */
    int32_t n_threads_prefill; /* 0: as many as turn out fastest, measured as steps run and remembered */
    int32_t n_threads_decode;  /* the same for steps of few rows */
    bool real_gpu;             /* GPU_MISSING where the only GPU is a program that imitates one */
} ellm_context_options;

ellm_status ellm_context_open(const ellm_model *model, const ellm_context_options *options, ellm_context **context,
                              ellm_error *error);
void ellm_context_close(ellm_context *context);
int32_t ellm_context_length(const ellm_context *context);
/* Threads used now for prompts and for answers. */
void ellm_context_get_threads(const ellm_context *context, int32_t *prefill, int32_t *decode);

/* The GPU that a context computes on. False where the processor does. */
typedef struct ellm_device_info {
    char name[256];
    char driver[64];                              /* another text for another device or version of its driver */
    bool is_processor;                            /* a program on the processor that imitates a GPU */
    uint64_t weight_bytes, kv_bytes, other_bytes; /* of its memory */
    uint64_t imported_bytes;               /* weights that stay in the page cache, with what shares their pages */
    uint64_t uploaded_bytes;               /* weights that were copied to the device */
    double upload_ms, pipelines_ms;        /* at open */
    double upload_copy_ms, upload_wait_ms; /* of upload_ms: that copying took, and of it waiting for the device */
    uint32_t n_dispatches, n_barriers;     /* for one token */
} ellm_device_info;
bool ellm_context_get_device(const ellm_context *context, ellm_device_info *info);

/* One row of a step: `token` is written at `position` of session `slot`. Rows of one session must be in
 * ascending position, without gaps, starting at the session's length. */
typedef struct ellm_row {
    int32_t token, position, slot;
    bool wants_logits;
} ellm_row;

/* Runs rows through the model and writes the logits of the rows that want them, in row order.
 *
 *   rows    in   n rows, any mix of sessions; cut into steps by the plan's row counts
 *   logits  out  (rows that want them, vocab) float32, caller-owned; may be NULL when none does
 *
 * Appends the positions to the sessions. Does not allocate. The logits do not depend on how rows are split
 * over calls, on the other rows of a call, or on the number of threads: the same bits each time. On a GPU, rows that
 * are split differently may differ by rounding.
 * Returns ELLM_CONTEXT_FULL or ELLM_TOKEN_RANGE, nothing changed, if a row does not fit. Where a kernel fails, sessions
 * with states per session are empty. */
ellm_status ellm_context_eval(ellm_context *context, const ellm_row *rows, size_t n, float *logits);

/* Convenience over eval for one session: appends `tokens`, writes the last one's logits, (vocab,) float32. */
ellm_status ellm_session_eval(ellm_context *context, int32_t slot, const int32_t *tokens, size_t n, float *logits);

/* Embeddings: numbers in one, 0 where the bundle cannot make any. */
size_t ellm_model_embedding_size(const ellm_model *model);
/* Appends a text's tokens to the session, in one call or several, and adds their last hidden states, behind the final
 * norm, to sum (size,), which begins as zeros; where the model pools by its last token, sum is that one's. The same bits
 * however they are split over calls. Errors as of ellm_session_eval; USAGE where the size is 0. */
ellm_status ellm_session_embed(ellm_context *context, int32_t slot, const int32_t *tokens, size_t n, double *sum);
/* The embedding of length 1, (size,), in the direction of sum: of the mean, too. Zeros stay zeros. */
void ellm_embedding_make(const double *sum, size_t size, float *embedding);

/* Positions held by a session; cut back to `length` positions (0 empties it, blocks return to the pool). With a
 * sliding window, ELLM_USAGE where positions that would become visible again are gone already, and with states per
 * session (state_bytes_per_session) wherever something would be cut; 0 always works. */
int32_t ellm_session_length(const ellm_context *context, int32_t slot);
ellm_status ellm_session_truncate(ellm_context *context, int32_t slot, int32_t length);

/* Makes session `to` hold the first `length` positions of `from`, in place of its own, without computing or copying them:
 * the same bits. What either appends afterwards is its own. ELLM_USAGE where `from` does not hold them; with a sliding
 * window, also where it gave up what they would show, and with states per session unless it holds just those. Nothing has
 * changed then. */
ellm_status ellm_session_share(ellm_context *context, int32_t from, int32_t to, int32_t length);

/* As `from` of ellm_session_share: what the bundle ships, computed when it was compiled (`edgellm compile --system-prompt`),
 * mapped, or copied to the GPU, when the context was opened. */
enum { ELLM_PREFIX = -1 };
/* How many tokens that is, and which; 0: none. A context holds no more of them than its length. */
size_t ellm_model_prefix_tokens(const ellm_model *model, const int32_t **tokens);
/* The system prompt in it, which conversations have that bring none of their own; NULL: none. */
const char *ellm_model_system(const ellm_model *model);

/* What a session holds, kept in a file for a later run. `tokens`: of its positions. `note`: up to 16 MiB of the caller's
 * own, kept with them. The file appears whole or not at all, readable by its owner only. */
ellm_status ellm_session_save(ellm_context *context, int32_t slot, const int32_t *tokens, const char *path,
                              const void *note, size_t note_bytes, ellm_error *error);

/* Such a file, opened: SESSION_INVALID where it is damaged, BUNDLE_MISSING where there is none. */
typedef struct ellm_saved ellm_saved;
ellm_status ellm_saved_open(const ellm_model *model, const char *path, ellm_saved **saved, ellm_error *error);
void ellm_saved_close(ellm_saved *saved);
/* The caller's own bytes, whichever bundle wrote them. */
const void *ellm_saved_note(const ellm_saved *saved, size_t *n_bytes);
/* The tokens whose state it has, n of them; 0 where another bundle wrote it, or another device: the processor, where a GPU
 * computes now, or the other way round. Their states mean nothing to this one. */
size_t ellm_saved_tokens(const ellm_saved *saved, const int32_t **tokens);
/* Makes the session hold those tokens, in place of its own. CONTEXT_FULL, the session empty, where they do not fit, and
 * NO_MEMORY or GPU_LOST where a GPU fails. */
ellm_status ellm_session_restore(ellm_context *context, int32_t slot, const ellm_saved *saved);

/* A flag another thread or a signal handler may set; eval then returns ELLM_CANCELLED between two steps of the
 * plan's rows (positions of finished steps stay). Cleared by the next call of eval's caller with false. */
void ellm_context_cancel(ellm_context *context, bool cancel);

/* ---- lookup -------------------------------------------------------------------------------------------- */

/* Guesses the next tokens from earlier occurrences of the last ones, in prompt and answer, and computes them in the
 * same step: quick where an answer repeats what is there. Guesses change the speed, never the logits. Whoever
 * picks the tokens need not know. One per session; must be closed before its context. */
typedef struct ellm_lookup ellm_lookup;

typedef enum ellm_lookup_mode {
    ELLM_LOOKUP_AUTO, /* guesses where that is faster, as measured: costs of steps, and how often guesses are right */
    ELLM_LOOKUP_ON,   /* guesses whenever there is something to guess from */
    ELLM_LOOKUP_OFF,
} ellm_lookup_mode;

typedef struct ellm_lookup_stats {
    uint64_t n_tokens, n_steps;     /* tokens fed, and steps they took */
    uint64_t n_guessed, n_accepted; /* guesses computed, and those that were right */
} ellm_lookup_stats;

ellm_status ellm_lookup_open(ellm_context *context, int32_t slot, ellm_lookup_mode mode, ellm_lookup **lookup);
void ellm_lookup_close(ellm_lookup *lookup);
/* An answer begins: the session holds `tokens`, from position 0 on, n of them. Statistics start anew. USAGE if the
 * session holds another number of positions. */
ellm_status ellm_lookup_begin(ellm_lookup *lookup, const int32_t *tokens, size_t n);
/* As ellm_session_eval for one token, but the session may hold guesses behind it until the next call. On failure it
 * holds what it held before the call, without guesses. */
ellm_status ellm_lookup_eval(ellm_lookup *lookup, int32_t token, float *logits);
/* Removes guesses from the session. */
void ellm_lookup_end(ellm_lookup *lookup);
void ellm_lookup_get_stats(const ellm_lookup *lookup, ellm_lookup_stats *stats);

/* ---- tokenizer ------------------------------------------------------------------------------------------ */

/* Encodes `n_bytes` of UTF-8; ELLM_TEXT_INVALID where it is not.
 * add_special: apply the post-processor (BOS and the like). parse_special: recognise special tokens in text.
 * Writes at most `cap` ids, always the full count to n_tokens; ELLM_BUFFER_SMALL if it did not fit. */
ellm_status ellm_encode(const ellm_model *model, const char *text, size_t n_bytes, bool add_special, bool parse_special,
                        int32_t *tokens, size_t cap, size_t *n_tokens);

/* Decodes ids to UTF-8 as `tokenizers` does. Writes at most `cap` bytes, the full count to n_bytes. */
ellm_status ellm_decode(const ellm_model *model, const int32_t *tokens, size_t n_tokens, bool skip_special, char *text,
                        size_t cap, size_t *n_bytes);

/* Streaming decode: feeds one token, gets the bytes that are certain now (whole characters only). The text of
 * all calls plus ellm_stream_flush equals ellm_decode of all tokens. Zero-initialise to start. */
typedef struct ellm_stream {
    int32_t window[64];
    uint32_t n_window, n_printed;
    bool skip_special, started;
} ellm_stream;
ellm_status ellm_stream_push(const ellm_model *model, ellm_stream *stream, int32_t token, char *text, size_t cap,
                             size_t *n_bytes);
ellm_status ellm_stream_flush(const ellm_model *model, ellm_stream *stream, char *text, size_t cap, size_t *n_bytes);

/* True for ids that end an answer (generation_config's eos_token_id and the like, from the manifest). */
bool ellm_token_is_stop(const ellm_model *model, int32_t token);

/* ---- chat template -------------------------------------------------------------------------------------- */

/* Renders the bundle's chat template.
 *
 *   messages_json  in   JSON array of messages, e.g. [{"role":"user","content":"hi"}]
 *   extra_json     in   JSON object of further variables (tools, date_string, …) or NULL
 *
 * Writes at most `cap` bytes, the full count to n_bytes; ELLM_BUFFER_SMALL if it did not fit.
 * ELLM_TEMPLATE_FAILED with the template's own message where it calls raise_exception. */
ellm_status ellm_chat_render(const ellm_model *model, const char *messages_json, const char *extra_json,
                             bool add_generation_prompt, char *text, size_t cap, size_t *n_bytes, ellm_error *error);
bool ellm_model_has_chat_template(const ellm_model *model);

/* ---- sampling ------------------------------------------------------------------------------------------- */

typedef struct ellm_logit_bias {
    int32_t token;
    float bias;
} ellm_logit_bias;

typedef struct ellm_sampler_options {
    float temperature;                         /* 0: greedy (lowest id wins a tie) */
    int32_t top_k;                             /* 0: off */
    float top_p;                               /* 1: off */
    float min_p;                               /* 0: off */
    float repetition_penalty;                  /* 1: off */
    float presence_penalty, frequency_penalty; /* 0: off */
    int32_t penalty_window;                    /* tokens looked back on, 0: 64 */
    uint64_t seed;
    const ellm_logit_bias *bias; /* n_bias entries, caller-owned, must outlive the sampler */
    size_t n_bias;
} ellm_sampler_options;

typedef struct ellm_sampler ellm_sampler;
ellm_status ellm_sampler_open(int32_t vocab_size, const ellm_sampler_options *options, ellm_sampler **sampler);
void ellm_sampler_close(ellm_sampler *sampler);
/* Tells the sampler about a token of the prompt or the answer (for the penalties). */
void ellm_sampler_accept(ellm_sampler *sampler, int32_t token);
/* Picks a token. Changes `logits` (vocab,) in place. The same seed and logits give the same token everywhere. */
int32_t ellm_sampler_pick(ellm_sampler *sampler, float *logits);
/* The manifest's recommended options (generation_config.json); greedy where it has none. */
void ellm_model_sampler_options(const ellm_model *model, ellm_sampler_options *options);

/* ---- constrained answers --------------------------------------------------------------------------------- */

/* What an answer may be: an automaton over bytes. Compiled from text that nobody vouches for: size, depth and work are
 * bounded. One thread at a time may use what was opened with it; share it to have it in several places. */
typedef struct ellm_grammar ellm_grammar;
/* A JSON schema; and a grammar's text (a subset of GBNF, src/grammar_text.c). GRAMMAR_INVALID names the keyword and its
 * place, or the line. */
ellm_status ellm_grammar_open_schema(const char *json, size_t n_bytes, ellm_grammar **grammar, ellm_error *error);
ellm_status ellm_grammar_open_text(const char *text, size_t n_bytes, ellm_grammar **grammar, ellm_error *error);
/* The same grammar for another user, who closes it, too. Users may be in different threads. */
ellm_grammar *ellm_grammar_share(ellm_grammar *grammar);
void ellm_grammar_close(ellm_grammar *grammar);

/* The model's tokens as bytes, in order. Made once; must outlive its matchers. */
typedef struct ellm_vocabulary ellm_vocabulary;
ellm_status ellm_vocabulary_open(const ellm_model *model, ellm_vocabulary **vocabulary);
void ellm_vocabulary_close(ellm_vocabulary *vocabulary);

/* Follows one answer. Before each pick, `apply` makes the logits (vocab,) of all tokens that may not follow -infinity;
 * then `accept` the token that was picked. GRAMMAR_STUCK if none may follow, or that one may not. */
typedef struct ellm_matcher ellm_matcher;
ellm_status ellm_matcher_open(ellm_grammar *grammar, const ellm_vocabulary *vocabulary, ellm_matcher **matcher);
void ellm_matcher_close(ellm_matcher *matcher);
ellm_status ellm_matcher_apply(ellm_matcher *matcher, float *logits);
ellm_status ellm_matcher_accept(ellm_matcher *matcher, int32_t token);
/* True once the answer is complete and nothing may follow. */
bool ellm_matcher_is_done(const ellm_matcher *matcher);
/* Makes a fresh stream show an answer's first token like any other: some tokenizers drop its blank. */
void ellm_stream_exact(ellm_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
