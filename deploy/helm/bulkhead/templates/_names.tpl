{{- define "bulkhead.labels" -}}
app.kubernetes.io/name: bulkhead
{{- end }}

{{- define "bulkhead.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Where configurations are; also the host's directory to mount. */}}
{{- define "bulkhead.confDir" -}}
{{ .Values.cni.confDir | default (ternary "/var/lib/rancher/k3s/agent/etc/cni/net.d" "/etc/cni/net.d" .Values.k3s) }}
{{- end }}

{{/* Of k3s the whole data directory: where in it the plugins are differs between releases, and bulkhead finds out. */}}
{{- define "bulkhead.binMount" -}}
{{ .Values.cni.binDir | default (ternary "/var/lib/rancher/k3s/data" "/opt/cni/bin" .Values.k3s) }}
{{- end }}

{{/* What install-cni and the agent must both know. */}}
{{- define "bulkhead.chainEnv" -}}
- {name: BULKHEAD_FAILURE_POLICY, value: {{ .Values.cni.failurePolicy | quote }}}
{{- with .Values.cni.confDir }}
- {name: BULKHEAD_CNI_CONF_DIR, value: {{ . | quote }}}
{{- end }}
{{- with .Values.cni.binDir }}
- {name: BULKHEAD_CNI_BIN_DIR, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{- define "bulkhead.chainMounts" -}}
- {name: cni-configurations, mountPath: {{ include "bulkhead.confDir" . }}}
- {name: cni-plugins, mountPath: {{ include "bulkhead.binMount" . }}}
{{- end }}
