#include "page.h"

#include "page_data.h" /* made by page/embed.py: PAGE_POLICY, page_gzip */

/* Nothing but the page's own script and style runs, and no other page shows it in a frame. */
#define FIELDS                                                                                                         \
    "Content-Encoding: gzip\r\nVary: Accept, Accept-Encoding\r\nCache-Control: no-cache\r\n"                           \
    "Content-Security-Policy: " PAGE_POLICY "\r\nReferrer-Policy: no-referrer\r\n"                                     \
    "Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Resource-Policy: same-origin\r\n"

void page_put(reply *r, const http_request *request) {
    static const char text[] = "edgellm-rt is running\n";
    if (request->wants_html && request->takes_gzip) {
        reply_put(r, 200, "text/html; charset=utf-8", FIELDS, (const char *)page_gzip, sizeof page_gzip);
    } else {
        reply_put(r, 200, "text/plain; charset=utf-8", "Vary: Accept, Accept-Encoding\r\n", text, sizeof text - 1);
    }
}
