/* notify.h: what systemd wants to hear from a service (sd_notify(3)); without systemd, nothing happens. */
#ifndef EDGELLM_RT_NOTIFY_H
#define EDGELLM_RT_NOTIFY_H

/* Sends lines such as "READY=1" to $NOTIFY_SOCKET. */
void notify_send(const char *text);
/* How often the watchdog wants a sign of life: half of $WATCHDOG_USEC, in ms. 0: it wants none. */
double notify_watchdog_ms(void);

#endif
