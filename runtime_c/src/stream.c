/* The public text functions: thin over the tokenizer of a model. */
#include "model.h"
#include "tokenizer.h"

ellm_status ellm_encode(const ellm_model *model, const char *text, size_t n_bytes, bool add_special,
                        bool parse_special, int32_t *tokens, size_t cap, size_t *n_tokens) {
    return ellm_tokenizer_encode(ellm_model_tokenizer(model), text, n_bytes, add_special, parse_special, tokens, cap,
                                 n_tokens);
}

ellm_status ellm_decode(const ellm_model *model, const int32_t *tokens, size_t n_tokens, bool skip_special,
                        char *text, size_t cap, size_t *n_bytes) {
    return ellm_tokenizer_decode(ellm_model_tokenizer(model), tokens, n_tokens, skip_special, text, cap, n_bytes);
}

ellm_status ellm_stream_push(const ellm_model *model, ellm_stream *stream, int32_t token, char *text, size_t cap,
                             size_t *n_bytes) {
    return ellm_tokenizer_push(ellm_model_tokenizer(model), stream, token, text, cap, n_bytes);
}

ellm_status ellm_stream_flush(const ellm_model *model, ellm_stream *stream, char *text, size_t cap,
                              size_t *n_bytes) {
    return ellm_tokenizer_flush(ellm_model_tokenizer(model), stream, text, cap, n_bytes);
}
