{{- define "gateway.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "gateway.selector" -}}
app.kubernetes.io/name: encounter-gateway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "gateway.image" -}}
{{- $repository := required "image.repository: the name of the image in your registry is required" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{ $repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The fields that the pods of the Deployment and of the Job share. Only the Job gets the URL of the owner. */}}
{{- define "gateway.pod" -}}
{{- with .root }}
automountServiceAccountToken: false
# Otherwise a Service named gateway would add variables that begin as settings.
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
volumes:
  # Several workers share their metrics in files.
  - name: tmp
    emptyDir:
      sizeLimit: 64Mi
  - name: secrets
    projected:
      # Readable by the group of `fsGroup`.
      defaultMode: 0440
      sources:
        - secret:
            name: {{ required "database.secret: the name of the Secret with the database URLs is required" .Values.database.secret }}
            items:
              - key: {{ .Values.database.urlKey }}
                path: GATEWAY_DATABASE_URL
              {{- if $.owner }}
              - key: {{ .Values.database.ownerUrlKey }}
                path: GATEWAY_DATABASE_OWNER_URL
              {{- end }}
        {{- range .Values.secrets }}
        {{- if ne .setting "GATEWAY_WEBHOOKS" }}
        - secret:
            name: {{ .secret }}
            items:
              - key: {{ .key }}
                path: {{ .setting }}
        {{- end }}
        {{- end }}
{{- end }}
{{- end }}

{{/* The fields that the containers of both share. */}}
{{- define "gateway.container" -}}
{{- with .root }}
image: {{ include "gateway.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - name: tmp
    mountPath: /tmp
  - name: secrets
    mountPath: /run/secrets/gateway
    readOnly: true
env:
  - name: GATEWAY_DATABASE_URL_FILE
    value: /run/secrets/gateway/GATEWAY_DATABASE_URL
  {{- if $.owner }}
  - name: GATEWAY_DATABASE_OWNER_URL_FILE
    value: /run/secrets/gateway/GATEWAY_DATABASE_OWNER_URL
  {{- end }}
  {{- range .Values.secrets }}
  {{- if eq .setting "GATEWAY_WEBHOOKS" }}
  # Not a secret itself, but a list of receivers with their secrets, so it cannot be read from a file.
  - name: {{ .setting }}
    valueFrom:
      secretKeyRef:
        name: {{ .secret }}
        key: {{ .key }}
  {{- else }}
  - name: {{ .setting }}_FILE
    value: /run/secrets/gateway/{{ .setting }}
  {{- end }}
  {{- end }}
  {{- range $name, $value := .Values.settings }}
  - name: {{ $name }}
    value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
  {{- end }}
  - name: GATEWAY_DRAIN_PAUSE_SECONDS
    value: {{ .Values.drain.pauseSeconds | quote }}
  - name: GATEWAY_DRAIN_SECONDS
    value: {{ .Values.drain.seconds | quote }}
  {{- with .Values.trustedProxies }}
  - name: FORWARDED_ALLOW_IPS
    value: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}
