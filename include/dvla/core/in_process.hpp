// InProcess: one word for both planes. The stage word around it says which is meant: DataPlane<InProcess> is
// InProcessData, ControlPlane<InProcess> is InProcessWeights. Any type may offer itself to several slots this
// way: a member template `in<Slot>` with the policy as `type`.
#pragma once

namespace dvla {

struct InProcess {
  template <class Slot>
  struct in;
};

}  // namespace dvla
