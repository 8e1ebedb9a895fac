/* Calls within an answer, wherever its pieces end. */
#include "posix.h"

#include "check.h"
#include "json_write.h"
#include "tool_calls.h"

static buffer said;

static void put_text(void *user, const char *text, size_t n_bytes) {
    (void)user;
    buffer_put(&said, text, n_bytes);
}

static void put_call(void *user, const char *name, size_t n_name, const ellm_json *arguments) {
    (void)user;
    buffer_print(&said, "[%.*s ", (int)n_name, name);
    buffer_put_value(&said, arguments);
    buffer_put(&said, "]", 1);
}

static const struct {
    const char *text, *want;
} samples[] = {
    {"The garage door is unlocked.", "The garage door is unlocked."},
    {"<tool_call>\n{\"name\": \"turn_on\", \"arguments\": {\"device\": \"lamp\"}}\n</tool_call>",
     "[turn_on {\"device\":\"lamp\"}]"},
    {"Sure. \n<tool_call>{\"name\":\"a\",\"arguments\":{}}</tool_call>\n<tool_call>{\"name\":\"b\"}</tool_call> \n",
     "Sure.[a {}][b {}]"},
    {"<tool_call>{\"name\":\"a\"}</tool_call>\n Done, and more to say", "[a {}]Done, and more to say"},
    {"a <b> <tool", "a <b> <tool"},
    {"a\n\n", "a\n\n"},
    {"<tool_call>rubbish</tool_call> x", "<tool_call>rubbish</tool_call> x"},
    {"<tool_call>{\"name\":7}</tool_call>", "<tool_call>{\"name\":7}</tool_call>"},
    {"<tool_call>{\"name\":\"a\",\"arguments\":[]}</tool_call>",
     "<tool_call>{\"name\":\"a\",\"arguments\":[]}</tool_call>"},
    {"<tool_call>{\"name\":\"a\",\"parameters\":{\"x\":1.5,\"y\":[true,null,\"\\u00e9\"]}}",
     "[a {\"x\":1.5,\"y\":[true,null,\"\xc3\xa9\"]}]"},
    {"<tool_call>{\"name\":\"a\"", "<tool_call>{\"name\":\"a\""},
};

int main(void) {
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        size_t n = strlen(samples[i].text);
        for (size_t piece = 1; piece <= n; piece++) {
            tool_reader reader = {.text = put_text, .call = put_call, .is_on = true};
            buffer_clear(&said);
            for (size_t at = 0; at < n; at += piece) {
                tool_reader_push(&reader, samples[i].text + at, n - at < piece ? n - at : piece);
            }
            tool_reader_end(&reader);
            bool good = said.n == strlen(samples[i].want) && memcmp(said.data, samples[i].want, said.n) == 0;
            if (!good) {
                fprintf(stderr, "in pieces of %zu: %s\n", piece, said.n > 0 ? said.data : "");
            }
            CHECK(good);
        }
        tool_reader off = {.text = put_text, .call = put_call};
        buffer_clear(&said);
        tool_reader_push(&off, samples[i].text, n);
        tool_reader_end(&off);
        CHECK(said.n == n && memcmp(said.data, samples[i].text, n) == 0);
    }
    buffer_free(&said);
    return check_result();
}
