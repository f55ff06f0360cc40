// While it lives, this thread and those it starts run on one core.
#pragma once

#include <sched.h>

class OneCore {
 public:
  OneCore() {
    good_ = ::sched_getaffinity(0, sizeof before_, &before_) == 0;
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu)
      if (CPU_ISSET(cpu, &before_)) CPU_SET(cpu, &one);
    good_ = good_ && ::sched_setaffinity(0, sizeof one, &one) == 0;
  }
  ~OneCore() { ::sched_setaffinity(0, sizeof before_, &before_); }
  OneCore(const OneCore&) = delete;
  OneCore& operator=(const OneCore&) = delete;
  bool good() const { return good_; }

 private:
  cpu_set_t before_{};
  bool good_ = false;
};
