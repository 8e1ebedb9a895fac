/* The record of what was done to this board: one JSON object a line, the newest last. */
#include "posix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "board.h"

static const char log_path[] = "log", old_path[] = "log.old";
enum { log_cap = 256 << 10, tail_cap = 512 << 10 };

const char *board_who = "";

void log_write(const char *what, const char *model, const char *slot, ellm_status status, const char *text) {
    struct stat now_there;
    if (stat(log_path, &now_there) == 0 && now_there.st_size > log_cap) {
        (void)rename(log_path, old_path);
    }
    struct timespec now, up;
    clock_gettime(CLOCK_REALTIME, &now);
    clock_gettime(CLOCK_BOOTTIME, &up); /* a board without a battery may not know the time */
    buffer line = {0};
    buffer_print(&line, "{\"time\":%lld,\"up_s\":%lld,\"what\":\"%s\",\"ok\":%s,\"model\":", (long long)now.tv_sec,
                 (long long)up.tv_sec, what, status == ELLM_OK ? "true" : "false");
    buffer_put_json(&line, model, strlen(model));
    buffer_print(&line, ",\"slot\":\"%s\",\"by\":", slot);
    buffer_put_json(&line, board_who, strlen(board_who));
    if (status != ELLM_OK) {
        buffer_print(&line, ",\"status\":\"%s\"", ellm_status_name(status));
    }
    buffer_print(&line, ",\"text\":");
    buffer_put_json(&line, text, strlen(text));
    buffer_put(&line, "}\n", 2);
    int file = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file >= 0) {
        /* A power cut may have torn the last line: it must not swallow this one. */
        char last = '\n';
        int reader = open(log_path, O_RDONLY | O_CLOEXEC);
        off_t end = reader < 0 ? 0 : lseek(reader, 0, SEEK_END);
        if (end > 0 && pread(reader, &last, 1, end - 1) == 1 && last != '\n') {
            (void)!write(file, "\n", 1);
        }
        if (reader >= 0) {
            close(reader);
        }
        (void)!write(file, line.data, line.n);
        (void)fsync(file);
        close(file);
    }
    buffer_free(&line);
}

/* The last part of a file, from the beginning of a line. */
static void read_tail(const char *path, buffer *text) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return;
    }
    off_t end = lseek(file, 0, SEEK_END), at = end > tail_cap ? end - tail_cap : 0;
    size_t want = end > at ? (size_t)(end - at) : 0, before = text->n;
    buffer_reserve(text, want);
    ssize_t n = pread(file, text->data + before, want, at);
    text->n = before + (n > 0 ? (size_t)n : 0);
    text->data[text->n] = '\0';
    close(file);
}

/* log [N]: the last N lines as they were written (default 100). */
ellm_status board_log(int n, char **words, ellm_error *error) {
    long most = n > 1 ? strtol(words[1], NULL, 10) : 100;
    if (most < 1 || most > 100000) {
        return ellm_fail(error, ELLM_USAGE, "log: '%.40s' is no number of lines", words[1]);
    }
    buffer text = {0};
    buffer_put(&text, "", 0);
    read_tail(old_path, &text);
    read_tail(log_path, &text);
    size_t begin = text.n;
    for (long i = 0; begin > 0; begin--) {
        if (text.data[begin - 1] == '\n' && begin != text.n && ++i == most) {
            break;
        }
    }
    ellm_status status = output_write(text.data + begin, text.n - begin, error);
    buffer_free(&text);
    return status;
}
