#pragma once
#include <linux/un.h>
#include <sys/socket.h>
